"""The figures in READMEs and docs are those of the committed results."""

import shutil
from pathlib import Path

import pytest

from benchmarks.serving.load.workloads import workloads
from benchmarks.serving.record import Record
from benchmarks.tables import all_rows, cells, committed, headline, speed
from benchmarks.tables.__main__ import PAGES, all_figures, filled, main, readme
from benchmarks.tables.committed import TablesError

ROOT = Path(__file__).parents[1]


def copied(folder):
    for page in PAGES:
        (folder / page).parent.mkdir(exist_ok=True)
        (folder / page).write_text((ROOT / page).read_text())
    return folder


def test_the_pages_say_what_the_results_say():
    assert main(["--check"]) == 0


def test_a_page_that_says_something_else_is_named(tmp_path, capsys):
    page = copied(tmp_path) / "README.md"
    text = page.read_text()
    page.write_text(text.replace("| **2.", "| **12.", 1))
    assert page.read_text() != text
    assert main(["--check"], tmp_path) == 1
    said = capsys.readouterr().err
    assert said == "tables: README.md is not what the results say: python -m benchmarks.tables\n"
    page.write_text("no place for figures")
    assert main(["--check"], tmp_path) == 2 and "it has places for none" in capsys.readouterr().err


def test_a_third_server_and_another_chip_are_told(tmp_path, monkeypatch):
    for name in ("checks-h100.json", committed.KERNELS, "quality.json"):
        shutil.copy(committed.RESULTS / name, tmp_path)
    monkeypatch.setattr(committed, "RESULTS", tmp_path)
    table = workloads(False)
    f = {"requests": 160, "ttft_p50": 1.0, "ttft_p50_by_turn": [1.0] * 8, "slots_mean": 10}
    speeds = {"stock": ("fa3", 100.0), "laprox": ("fa3", 150.0), "stock-fp8": ("flashinfer", 200.0)}
    record = Record(tmp_path / f"serving-{speed.CHIP}.json", False, table)
    record.put(table["e"], "laprox", {"output_tok_s": 1.0}, "fa3")
    with pytest.raises(TablesError, match="no row f"):
        readme()
    for server, (backend, tokens) in speeds.items():
        record.put(table["f"], server, f | {"output_tok_s": tokens}, backend)
    shutil.copy(tmp_path / f"serving-{speed.CHIP}.json", tmp_path / "serving-another.json")
    blocks = readme()
    assert "(attention backends fa3 / fa3; " in blocks["headline"] and "**1.50 times**" in blocks["headline"]
    assert "fastest stock" not in blocks["headline"]
    f_row = "| (f) agents: 4K shared, 24K of their own, 8 turns of 1K more | "
    assert f"{f_row}fa3 / fa3 | output tokens/s | 100 | 150 | 1.50 |" in blocks["serving"]
    # Stock with fp8 KV is of a card's own rows there, and of the first other card's here.
    fp8 = "flashinfer with fp8 KV / fa3 | output tokens/s | 200 | 150 | **0.75** |"
    assert blocks["serving"].count(fp8) == 1 and f_row + fp8 in blocks["serving"]
    for chip, name in (("another", "lone-300"), ("third", "short-1k")):
        other = Record(tmp_path / f"serving-{chip}.json", False, table)
        for server, figure in (("stock", 10.0), ("laprox", 12.0)):
            other.put(table[name], server, {"ttft_p50": figure, "output_tok_s": 10 * figure}, "fa3")
    told = readme()["serving"]
    first = "time to first token, median | 10.0 ms | 12.0 ms | **1.20** |"
    assert f"| (lone-300) {table['lone-300'].what} | fa3 / fa3 | {first}" in told
    short = f"| (short-1k) {table['short-1k'].what} | fa3 / fa3 | output tokens/s | 100 | 120 | 1.20 |"
    assert f"{short}\n|  |  | {first}" in told
    forced = Record(tmp_path / f"serving-{speed.CHIP}.json", False, table, "flashinfer")
    forced.put(table["f"], "stock", f | {"output_tok_s": 125.0}, "flashinfer")
    blocks = readme()
    assert "|  | flashinfer / fa3 | output tokens/s | 125 | 150 | 1.20 |" in blocks["serving"]
    assert "(1.20 times the fastest stock's, on flashinfer)" in blocks["headline"]
    assert "(e)" not in blocks["serving"]
    everything = all_figures()["all"]
    assert everything.count("stock fa3, laprox fa3, stock-fp8 flashinfer") == 2
    assert everything.count("| 100 | 150 | 1.50 | 200 | **0.75** | ≥ 1.8 **missed** |") == 2


@pytest.mark.parametrize(("value", "text"), [(0, "≤ 0 more"), (1, "≤ 0 more **missed**")])
def test_what_is_counted_has_a_bound_of_the_difference(value, text):
    assert all_rows.judged({"workload": "profile", "added": {"syncs": value}}, "syncs") == text


def side(versions):
    return {"versions": versions, "commit": "0" * 40, "dirty": False, "date": "2026-01-01"}


def test_what_has_no_figure_is_said_beside_the_headline(monkeypatch):
    pinned = headline.stack()
    assert set(pinned) == set(headline.STACK)
    of_today = [side({name: f"{version}+cu130" for name, version in pinned.items()})]
    older = side(of_today[0]["versions"] | {"torch": "2.11.0+cu130"})
    monkeypatch.setattr(headline, "BUDGET", 0.2)
    assert headline.not_measured(of_today) == []
    [told] = headline.not_measured([*of_today, older])
    assert f"torch {pinned['torch']}, sglang-kernel" in told and "torch 2.11.0, " in told
    monkeypatch.setattr(headline, "BUDGET", 0.05)
    assert "at the default budget**, 20 %" in headline.not_measured(of_today)[0]


def test_what_is_lost_stands_beside_what_is_won(monkeypatch):
    monkeypatch.setattr(headline, "faster_stock", lambda workload: None)
    slower = {"output_tok_s": 0.5, "ttft_p50": 2.0, "slots_mean": 0.1, "itl_p99": 1.5}
    row = {"ratio": slower, "stock": {"slots_mean": 10}, "laprox": {"slots_mean": 1}, "what": "one"}
    told = headline.claims({"f": row, "ttft": row})
    assert [is_lost for is_lost, _ in told] == [True, True, False, True]
    rows = headline.two_columns(told).splitlines()[2:]
    assert rows[0] == "| 1 KV slots pinned, not 10 | **0.50 times** the output tokens per second |"
    assert len(rows) == 3


def test_what_lies_between_the_marks_is_replaced():
    text = "a\n<!-- figures: x -->\n<!-- end of figures -->\nb <!-- figures: y -->old<!-- end of figures -->"
    once = filled(text, {"x": "1", "y": "2"})
    assert "\n\n1\n\n" in once and "2" in once and "old" not in once
    assert filled(once, {"x": "1", "y": "2"}) == once
    with pytest.raises(TablesError):
        filled(text, {"x": "1"})


@pytest.mark.parametrize(
    ("figure", "row", "text"),
    [
        ("output_tok_s", {"ratio": {"output_tok_s": 2.161}}, "2.16"),
        ("output_tok_s", {"ratio": {"output_tok_s": 0.9}}, "**0.90**"),
        ("ttft_p50", {"ratio": {"ttft_p50": 1.0018}}, "**1.002**"),
        ("ttft_p50", {"ratio": {"ttft_p50": 1.0004}}, "1.000"),
        ("syncs", {"added": {"syncs": 0}}, "+0"),
        ("syncs", {"added": {"syncs": 2}}, "**+2**"),
        ("itl_p50", {}, ""),
    ],
)
def test_bold_is_where_laprox_is_behind(figure, row, text):
    assert cells.beside(row, "ratio", figure) == text
