"""The serving checks without a server: their arithmetic, their limits, their complaints."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.checks import plan as plan_module
from benchmarks.checks import soak as soak_module
from benchmarks.checks.answers import Conversations, Identity, Needles
from benchmarks.checks.plan import TALKS, make_check
from benchmarks.checks.record import Record
from benchmarks.checks.rows import Row
from benchmarks.checks.soak import Memory, Soak, SoakSizes
from benchmarks.checks.traffic import MOST_TOKENS, Seen, Traffic
from benchmarks.harness.client import holds_its_budget
from benchmarks.harness.files import RecordError
from laprox_sglang.options.values import budget_slots
from laprox_tools.needle import SENTENCE

ROOT = Path(__file__).resolve().parent.parent


class Canned:
    """A server that answers every prompt with the ids that it is given for it."""

    def __init__(self, name, answers, pruned=True):
        self.name, self._answers, self._pruned = name, answers, pruned
        self.asked = []

    def generate_all(self, asked, at_once):
        self.asked.append(at_once)
        said = {"laprox": [{"pruned": self._pruned}]}
        outputs = [self._answers[tuple(request["ids"])][: request["tokens"]] for request in asked]
        return [{"output_ids": ids, "meta_info": said} for ids in outputs]

    def flush(self):
        pass


def table(rows):
    return {row.what: row for row in rows}


@pytest.mark.parametrize(
    "least, most, value, met, limit",
    [
        (None, None, 1, None, ""),
        (95.0, None, 95.0, True, "≥ 95.00 %"),
        (95.0, None, 94.9, False, "≥ 95.00 %"),
        (None, 64, 64, True, "≤ 64 %"),
        (None, 64, 64.1, False, "≤ 64 %"),
        (100, 100, 99.9, False, "= 100 %"),
    ],
)
def test_limits(least, most, value, met, limit):
    row = Row("c", "w", value, "%", least=least, most=most)
    assert (row.met, row.limit()) == (met, limit)


def test_checks_of_several_runs_share_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.harness.provenance.REVISION", {"commit": "abc", "dirty": False})
    file = tmp_path / "checks.json"
    Record(file, False).put(
        "soak", [Row("soak", "leaks", 1, most=0)], {"memory_samples": [[1, 2]]}, {"soak": "fa3"}
    )
    record = Record(file, False)
    record.put("soak", [Row("soak", "leaks", 0, most=0)], {}, {"stock": "fa3", "soak": "fa3"})
    record.put("quality", [Row("quality", "exact", 1, "%")], {}, {})
    written = json.loads(file.read_text())
    assert {"chip", "quick", "parts", "rows", "details"} == set(written)
    assert {"versions", "date", "command", "commit", "dirty", "attention_backend"} == set(
        written["parts"]["soak"]
    )
    assert written["rows"][0] == {
        "check": "soak", "what": "leaks", "value": 0, "unit": "", "least": None, "most": 0, "met": True
    }  # fmt: skip
    assert [row["check"] for row in written["rows"]] == ["soak", "quality"]
    # What this commit has checked is not checked again.
    assert Record(file, False).holds("soak") and not Record(file, False).holds("identity")
    monkeypatch.setattr("benchmarks.harness.provenance.REVISION", {"commit": "def", "dirty": False})
    assert not Record(file, False).holds("soak")
    with pytest.raises(RecordError, match="give another file"):
        Record(file, True)
    file.write_text("[]")
    with pytest.raises(RecordError, match="does not hold results of the checks"):
        Record(file, False)


class Instant:
    """A server that is up at once."""

    def __init__(self, name, flags, *given):
        self.name, self.flags = name, flags

    def __enter__(self):
        return self

    def __exit__(self, *given):
        pass

    def info(self):
        return {"attention_backend": "fa3", "decode_attention_backend": "flashinfer"}

    def warm_up(self):
        pass

    flush = warm_up


def test_every_server_of_a_check_is_asked(monkeypatch, tmp_path):
    monkeypatch.setattr(plan_module, "Server", Instant)
    asked, said = [], []

    def ask(server):
        asked.append((server.name, server.flags))

    for name, servers in (
        ("needles", {"needles": "0.1"}),
        ("conversations", {"stock": None, "0.05": "0.05"}),
        ("identity", {"stock": None, "1.0": "1.0", "0.998": "0.998"}),
    ):
        check = make_check(name, True, None)
        monkeypatch.setattr(check, "ask", ask)
        backends = plan_module.run(check, ["--more"], tmp_path, said.append)
        assert backends == dict.fromkeys(servers, "fa3 / flashinfer")
        pool = ["--max-total-tokens", "32768"]
        pruned = {n: ["--enable-laprox", "--laprox-budget", b] if b else [] for n, b in servers.items()}
        assert asked == [(server, [*pool, *pruned[server], "--more"]) for server in servers]
        asked.clear()
    assert "conversations, server stock: done after 0 s" in said
    soak = make_check("soak", True, 7).servers()
    assert list(soak) == ["stock", "soak"] and soak["soak"].environment["SGLANG_TEST_RETRACT"] == "1"


@pytest.mark.parametrize("quick", [False, True])
def test_a_conversation_is_long_enough_for_its_budget(quick):
    """Of a shorter one a view has far more than the share that the rows speak of."""
    told, share = SENTENCE * TALKS[quick][1][0], float(Conversations.PRUNED)
    assert budget_slots(share, told) <= 1.1 * share * told


def right_answers(samples, tokens):
    return {tuple(s.prompt_ids()): [*s.answer_ids(), *range(tokens)] for s in samples}


def test_identity_counts_ids_in_their_places():
    identity = Identity(4, 600, 700, 10, 9000)
    answers = right_answers(identity._samples, 6)
    stock = Canned("stock", answers)
    identity.ask(stock)
    assert stock.asked == [1, 4]
    # One of four prompts differs from its sixth id on: 5 of 40 ids.
    other = dict(answers)
    changed = tuple(identity._samples[2].prompt_ids())
    other[changed] = [*answers[changed][:5], *[400] * 5]
    identity.ask(Canned("1.0", other, pruned=False))
    identity.ask(Canned("0.998", answers))
    rows = table(identity.rows())
    assert rows["the same: budget 1.0"].value == 87.5
    assert rows["the same: budget 1.0"].met is False
    assert rows["the same: budget 0.998"].value == 100 and rows["the same: budget 0.998"].met
    assert rows["exact answers: 1.0"].value == 100
    assert rows["prompts pruned: 1.0"].met and rows["prompts pruned: 0.998"].met
    assert rows["exact answers: 0.998"].met and rows["exact answers: 1.0"].met is None
    identity.ask(Canned("0.998", answers | {changed: [0] * 10}))
    rows = table(identity.rows())
    assert rows["exact answers: 0.998"].met is False
    # Nine of the ten ids of one prompt in four are others.
    assert rows["the same: budget 0.998"].value == 77.5 and rows["the same: budget 0.998"].met is False


@pytest.mark.parametrize("wrong, pruned, met", [(3, True, True), (4, True, False), (0, False, False)])
def test_needles_allow_three_points(wrong, pruned, met):
    needles = Needles(100, 200, 8, 9000)
    right = [{"output_ids": sample.answer_ids()} for sample in needles._samples]
    for replies, share, missed in ((needles._pruned, pruned, wrong), (needles._whole, False, 0)):
        said = {"laprox": [{"pruned": share}]}
        replies += [
            {**reply, "meta_info": said} if i >= missed else {"output_ids": [0] * 5, "meta_info": said}
            for i, reply in enumerate(right)
        ]
    assert all(row.met is not False for row in needles.rows()) == met
    needles._slots = (9, 10)
    assert table(needles.rows())["slots missing after a flush"].met is False


def make_soak(samples, seen, stock=(True, True)):
    memory = Memory("GPU memory", None, 64)
    soak = Soak(SoakSizes(300, 2, 100, 2, 400, 0), 9000, memory)
    soak.samples, soak._seen, soak._stock = samples, seen, list(stock)
    soak._totals = {"released": {}, "prunes": 0}
    soak._idle_checks = 1
    return soak


def test_soak_compares_with_stock_on_the_same_prompts():
    samples = [(60, 1.0), (70, 1.0)]
    answers = [Seen(None, [False]), Seen(0, [True]), Seen(0, [True, True]), Seen(1, [False]), Seen(1, [])]
    # Stock gets prompt 1 wrong as well, so one wrong answer in four is no loss.
    rows = make_soak(samples, answers, (True, False)).rows()
    assert table(rows)["exact answers, 4 unpruned"].met
    rows = make_soak(samples, answers, (True, True)).rows()
    assert table(rows)["exact answers, 4 unpruned"].met is False


@pytest.mark.parametrize(
    "used, met", [((900, 964), True), ((900, 980, 900), False), ((900,), False), ((), False)]
)
def test_soak_memory(used, met):
    seen = [Seen(None, [True]), Seen(0, [True])]
    rows = make_soak([(60.0 + i, mebibytes) for i, mebibytes in enumerate(used)], seen).rows()
    assert all(row.met is not False for row in rows if "memory" in row.what) == met


def test_idle_check_misses_a_slot(monkeypatch):
    monkeypatch.setattr(soak_module, "IDLE_SECONDS", 0.1)
    totals = {"slots": 100, "available_slots": 59, "evictable_slots": 40, "running": 0, "waiting": 0}
    soak = make_soak([], [])
    with pytest.raises(AssertionError, match="slots are missing"):
        soak._check_idle(SimpleNamespace(laprox=lambda: totals))
    soak._check_idle(SimpleNamespace(laprox=lambda: totals | {"available_slots": 60}))
    with pytest.raises(AssertionError, match="slots are missing"):
        soak._check_idle(SimpleNamespace(laprox=lambda: totals | {"available_slots": 60}), flushed=True)


@pytest.mark.parametrize(
    "pruned, after, before, effective, right",
    [
        (True, 200, 1000, 0.2, True),
        (True, 199, 1000, 0.199, False),
        (True, 201, 1000, 0.201, False),
        # What the plan says is not what the allocator counted.
        (True, 200, 1000, 0.3, False),
        # No fraction is less than 64 slots.
        (True, 64, 300, 64 / 300, True),
        (True, 60, 300, 0.2, False),
        (True, 65, 300, 65 / 300, False),
        (True, 65, 325, 0.2, True),
        (True, 64, 325, 64 / 325, False),
        (False, 1000, 1000, 1.0, True),
        (False, 999, 1000, 1.0, False),
    ],
)
def test_slots_are_exactly_those_of_the_budget(pruned, after, before, effective, right):
    said = {"pruned": pruned, "slots_before": before, "slots_after": after, "budget_effective": effective}
    assert holds_its_budget(said, 0.2) == right


def test_short_prompts_stay_short_through_a_retraction():
    traffic = Traffic(0, 8, 400)
    short = [len(sample.prompt_ids()) + MOST_TOKENS for sample in traffic.whole[1::2]]
    assert max(short) < 256
    assert min(len(sample.prompt_ids()) for sample in traffic.whole[::2]) >= 300


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["needles", "speed"], "no such check: speed"),
        (["--json", "/nowhere/x.json", "--quick"], "cannot be written: give a file"),
    ],
)
def test_bad_arguments_are_one_line(arguments, complaint):
    command = [sys.executable, "-m", "benchmarks.checks", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert complaint in result.stderr.splitlines()[-1]
