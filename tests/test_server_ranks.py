"""``--tp-size`` on a CPU: one of the ``SPREADS``, by ``LAPROX_TEST_RANKS``, or of two ranks by the seed.

SGLang's leak checks run after every step, and with them the comparison of what the ranks hold.
"""

import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
import torch
import zmq

from benchmarks.harness.client import ClientError, facts
from benchmarks.harness.server import RETURN_KEPT, cores, free_port
from benchmarks.quality.methods.choice import Chooser, plan_of
from benchmarks.quality.methods.judge import outcomes
from benchmarks.quality.methods.reader import Model, everything
from choice import check_choice
from laprox_sglang.options.server import Config
from laprox_sglang.report.events import Start, decode
from laprox_sglang.scorers.allocators import floor_cells
from laprox_tools.needle import MODEL_PATH, Sample, Task
from prompts import EXACT, OPTED_OUT, cells_in, difference
from server import Server
from spread import SPREADS, Spread, write_model

pytestmark = pytest.mark.full

POOL, LAYERS = 3000, 8
# Of prompts of 500 to 900 tokens.
BUDGETS = (0.1, 35)
# How many prompts, and their lengths, for so many slots.
ASKED = {70: (16, 500, 900), 66: (12, 1200, 1450)}
BUDGET = {"budget": 0.2}
FLAGS = (
    *("--enable-laprox", "--laprox-budget", "1.0", *RETURN_KEPT, "--enable-metrics"),
    *("--chunked-prefill-size", "512"),
)
# Of failing_rank.py. It and copied_heads.py are for the server alone: who imports them has what they change.
MOST = 1500
TESTS = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
# Stock waits a minute for dumps of the GPU, where a scheduler still lives 5 s after another's failure.
NO_DUMP = {"SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0"}
# Of several that run, one is retracted now and then.
RETRACT = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "8"}


class Ranks:
    """A server, who listens to its events, and what is served."""

    def __init__(self, server: Server, events: str, name: str) -> None:
        self.server, self.name, self.spread = server, name, SPREADS[name]
        self.heads = len(self.spread.kv)
        self._context = zmq.Context()
        self.events = self._context.socket(zmq.SUB)
        self.events.subscribe(b"")
        self.events.connect(events)

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture(scope="module")
def name(seed: int) -> str:
    """Of a spread."""
    drawn = "one-head" if seed % 2 else "four-heads"
    return os.environ.get("LAPROX_TEST_RANKS") or drawn


@pytest.fixture(scope="module")
def model(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its KV heads are those that all ranks tell of."""
    folder = tmp_path_factory.mktemp("model") / name
    write_model(SPREADS[name], folder)
    return folder


@pytest.fixture(scope="module")
def ranks(name: str, model: Path) -> Iterator[Ranks]:
    events, spread = f"tcp://127.0.0.1:{free_port()}", SPREADS[name]
    served = MODEL_PATH if spread.copied else model
    scorer = "copied_heads:laprox" if spread.copied else "failing_rank:laprox"
    told = ("--tp-size", str(spread.ranks), "--laprox-events", events, "--laprox-scorer", scorer)
    flags = ("--model-path", str(served), *FLAGS, *told)
    with Server(*flags, tokens=POOL, **cores(spread.ranks), **RETRACT, **TESTS, **NO_DUMP) as server:
        found = Ranks(server, events, name)
        yield found
        found.close()


@pytest.fixture(scope="module")
def oracle(model: Path) -> Model:
    return Model(model)


def samples(seed: int, count: int, shortest: int = 500, longest: int = 900) -> list[Sample]:
    draw = random.Random(seed)
    return [Task(draw.random()).batch(1, draw.randint(shortest, longest))[0] for _ in range(count)]


def by_rank(cells: torch.Tensor, spread: Spread) -> torch.Tensor:
    """``[R, L, h, n]`` of ``[L, H, n]``."""
    return cells.unflatten(1, (spread.ranks, -1)).transpose(0, 1)


def test_whole_prompts_give_the_ids_of_one_rank(ranks: Ranks, oracle: Model, seed: int) -> None:
    """Which are those of Hugging Face's Llama."""
    for sample in samples(seed, 6):
        reply = ranks.server.generate(sample.prompt_ids(), 8)
        assert facts(reply)["reason"] == "within_budget"
        prefix, ids = oracle.prefill(sample.prompt_ids()), reply["output_ids"]
        (logprobs,) = oracle.follow(prefix, ids[:-1], everything(oracle, prefix))
        assert logprobs.argmax(-1).tolist() == ids


def test_ranks_keep_what_a_choice_among_all_heads_keeps(
    ranks: Ranks, oracle: Model, seed: int, figures: list[str]
) -> None:
    worst, kept, allocation = 0.0, 0, Config().method.allocation
    for i, sample in enumerate(samples(seed + 1, 8)):
        options = {"budget": BUDGETS[i % 2], "return_kept": True}
        reply = ranks.server.generate(sample.prompt_ids(), 9, options, return_logprob=True)
        said, prefix = facts(reply), oracle.prefill(sample.prompt_ids())
        assert said["kept_cells"] == said["slots_after"] * LAYERS * ranks.heads
        cells = cells_in(reply, prefix)
        assert cells.sum() == said["kept_cells"]
        assert 1 - cells.flatten(0, 1).any(0).float().mean().item() == pytest.approx(
            said["erased_share"], abs=1e-6
        )
        shares = cells.sum(dim=(1, 2)) / cells.sum()
        assert shares.tolist() == pytest.approx(said["layer_share"], abs=1e-6)
        # What it reads is what it says.
        worst = max(worst, difference(oracle, prefix, reply))
        kept += int(cells.sum())
        plan, chooser = plan_of(Config(), BUDGETS[i % 2], len(prefix.ids)), Chooser(oracle, prefix)
        scores = by_rank(chooser.scores(Config(), plan), ranks.spread)
        held = floor_cells(plan.least, plan.protected, allocation.floor)
        cells = by_rank(cells, ranks.spread)
        assert (cells.sum(dim=(1, 2, 3)) == plan.least * LAYERS * cells.shape[2]).all()
        check_choice(cells, scores, by_place=True, held=held, rounding=EXACT.gap)
    figures.append(
        f"{ranks.name}: of {kept:,} cells that were kept none is certainly worse than one that was not, "
        f"log-probs differ by at most {worst:.1e}"
    )


def test_answers_are_those_of_one_rank(ranks: Ranks, oracle: Model, seed: int, figures: list[str]) -> None:
    for slots, (count, *lengths) in ASKED.items():
        asked = samples(seed + 2, count, *lengths)
        replies = ranks.server.generate_all(
            [{"ids": each.prompt_ids(), "tokens": 4, "laprox": {"budget": slots}} for each in asked], 6
        )
        found = sum(
            reply["output_ids"] == each.answer_ids() for reply, each in zip(replies, asked, strict=True)
        )
        alone = 0
        for each in asked:
            prefix = oracle.prefill(each.prompt_ids())
            cells = Chooser(oracle, prefix).cells(Config(), slots)
            alone += outcomes(oracle, prefix, [], each.answer_ids(), [cells])[1].exact
        figures.append(
            f"{ranks.name} in {slots} slots: {found} of {len(asked)} answers exact, one rank {alone}"
        )
        assert abs(found - alone) <= 0.03 * len(asked) + 1


def test_soak(ranks: Ranks, seed: int, figures: list[str]) -> None:
    server, draw = ranks.server, random.Random(seed)
    shared = Task(draw.random()).batch(1, 500)[0].prompt_ids()

    def one(number: int) -> None:
        own = random.Random(seed + number)
        ids = Task(own.random()).batch(1, own.randint(80, 500))[0].prompt_ids()
        if number % 3 == 0:
            ids = shared[: own.randint(100, 300)] + ids[1:]
        tokens = own.choice([1, 4, 8, 16])
        options = own.choice([BUDGET, {"budget": 0.05}, OPTED_OUT, BUDGET | {"keep_prefix": 64}])
        sampling = {"ignore_eos": True}
        if number % 6:
            reply = server.generate(ids, tokens, options, sampling=sampling)
            assert len(reply["output_ids"]) == tokens
            return
        for event in server.stream(ids, 60, options, rid=f"abort-{number}", sampling=sampling):
            if event["meta_info"]["completion_tokens"] >= 2:
                server.abort(f"abort-{number}")

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(one, range(100)))
    deadline = time.monotonic() + 20
    while True:
        said = server.laprox()
        if said["available_slots"] + said["evictable_slots"] == POOL and not said["running"]:
            break
        assert time.monotonic() < deadline, said
        time.sleep(0.05)
    figures.append(
        f"soak of {ranks.name}: prunes {said['prunes']}, left whole {said['unpruned']}, {said['released']}"
    )
    assert said["released"]["retracted"] >= 5 and said["released"]["aborted_running"] >= 5
    assert said["prunes"] >= 40


def test_one_rank_tells_of_all(ranks: Ranks) -> None:
    states = ranks.server.info()["internal_states"]
    assert len(states) == 1 and not states[0]["laprox"]["untested"]
    said = states[0]["laprox"]
    # K and V in float32 of 64 numbers.
    assert said["slot_bytes"] == 2 * 4 * 64 * LAYERS * ranks.heads
    messages = []
    while ranks.events.poll(1000):
        messages.append(ranks.events.recv_multipart()[-1])
    start, *events = map(decode, messages)
    assert isinstance(start, Start) and start.heads == ranks.heads and start.slot_bytes == said["slot_bytes"]
    # From the first that was published after we came; another rank would count by itself.
    assert [event.seq for event in events] == list(range(events[0].seq, said["events"]["sent"] + 1))
    assert events[0].seq < 9
    page = requests.get(f"{ranks.server.url}/metrics", timeout=60).text
    lines = [line for line in page.splitlines() if line.startswith("laprox_") and "tp_rank=" in line]
    assert lines and all('tp_rank="0"' in line for line in lines)


def test_out_of_memory_on_one_rank_ends_all(ranks: Ranks, seed: int, figures: list[str]) -> None:
    """No server is left behind for another test."""
    server, ids = ranks.server, Task(seed).batch(1, MOST + 100)[0].prompt_ids()
    assert MOST < len(ids) < POOL
    everybody = psutil.Process(server.pid).children(recursive=True)
    assert sum("scheduler_TP" in " ".join(each.cmdline()) for each in everybody) == ranks.spread.ranks
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(server.generate, ids, 40, BUDGET)
        # From here on: how long the prompt takes to get there is the machine's.
        while "made up by a test" not in server.launch.log.read_text(errors="replace"):
            assert not reply.done(), reply.result()
            time.sleep(0.1)
        began = time.monotonic()
        _, alive = psutil.wait_procs(everybody, timeout=15)
        ended = time.monotonic() - began
        assert not alive, "a rank has failed, and others live on"
        with pytest.raises((requests.RequestException, ClientError)):
            reply.result(timeout=5)
    figures.append(f"{ranks.name}, out of memory on one rank: all processes ended {ended:.1f} s later")
