"""The figures in READMEs and docs are those of the committed results."""

import shutil
from pathlib import Path

import pytest

from benchmarks.serving.load.workloads import workloads
from benchmarks.serving.record import Record
from benchmarks.serving.run import LoadPoint
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
    page.write_text(text.replace("| **1.", "| **11.", 1))
    assert page.read_text() != text
    assert main(["--check"], tmp_path) == 1
    said = capsys.readouterr().err
    assert said == "tables: README.md is not what the results say: python -m benchmarks.tables\n"
    page.write_text("no place for figures")
    assert main(["--check"], tmp_path) == 2 and "it has places for none" in capsys.readouterr().err


def unwrapped(text):
    return " ".join(text.split())


def test_each_side_of_a_point_is_the_fastest_server_and_other_chips_are_history(tmp_path, monkeypatch):
    for name in ("checks-h100.json", committed.KERNELS, "quality.json"):
        shutil.copy(committed.RESULTS / name, tmp_path)
    monkeypatch.setattr(committed, "RESULTS", tmp_path)
    table = workloads(False)
    f = {"ttft_p50": 1.0, "slots_mean": 10}
    path = tmp_path / f"serving-{speed.CHIP}.json"
    record = Record(path, False, table)
    record.put(table["ttft"], "laprox", {"output_tok_s": 1.0}, "fa3")
    for server, (backend, tokens) in {
        "stock": ("fa3", 100.0), "laprox": ("fa3", 150.0), "stock-fp8": ("flashinfer", 200.0)
    }.items():  # fmt: skip
        record.put(table["f"], server, f | {"output_tok_s": tokens}, backend)
    with pytest.raises(TablesError, match="no recorded-64k-32, ttft, e of stock and LaProx"):
        readme()
    for server in ("stock", "laprox"):
        for row in ("ttft", "e"):
            record.put(table[row], server, {"output_tok_s": 1.0, "ttft_p50": 1.0, "itl_p99": 4.0}, "fa3")
    point = LoadPoint(
        speed.AGENTS, "agents at once", {"curve": "recorded-64k", "at": 32, "unit": "at once"}, []
    )
    of_point = {
        "ttft_p50": 2.0,
        "ttft_p95": 2.0,
        "itl_p50": 1.0,
        "interactivity_p90": 3.0,
        "prompt_tokens": 200,
        "requests": 3,
    }
    for server, tokens, again in (
        ("stock", 10.0, 20), ("stock-host", 40.0, 10), ("laprox", 90.0, 4), ("laprox-20", 95.0, 1)
    ):  # fmt: skip
        record.put(point, server, of_point | {"output_tok_s": tokens, "computed_again": again}, "fa3")
    record.put(point, "stock-agents", {"failed": "it broke"}, "fa3")
    record.put(point, "laprox-host", {"failed": "it broke"}, "fa3")
    blocks = readme()
    speeds = "output tokens/s | 40.0 | 90.0 | 2.25 |"
    assert f"| agents at once | {speeds}" in blocks["speed"]
    assert "Recorded agents: stock, host tier and LaProx, 5 %." in unwrapped(blocks["speed"])
    assert "|  | prompt tokens computed again | 5.0 % | 2.0 % | 0.40 |" in blocks["speed"]
    assert f"| (f) {table['f'].what} | output tokens/s | 200 | 150 | **0.75** |" in blocks["speed"]
    assert "**2.25 times**" in blocks["headline"]
    assert "agents at once; stock, host tier and LaProx, 5 %. (f)" in unwrapped(blocks["headline"])
    forced = Record(path, False, table, "flashinfer")
    forced.put(table["f"], "stock", f | {"output_tok_s": 250.0}, "flashinfer")
    assert f"| (f) {table['f'].what} | output tokens/s | 250 | 150 | **0.60** |" in readme()["speed"]
    record = Record(path, False, table)
    short = of_point | {"output_tok_s": 95.0, "computed_again": 1, "invalid": ["partial: 1 s"]}
    record.put(point, "stock-host", short, "fa3")
    blocks = readme()
    speeds = "output tokens/s | 95.0 | 90.0 | **0.95** |"
    assert f"| agents at once | {speeds}" in blocks["speed"]
    for block in ("speed", "headline"):
        assert "stock, host tier (*partial: 1 s*) and LaProx, 5 %." in unwrapped(blocks[block])
    shutil.copy(path, tmp_path / "serving-another.json")
    everything = all_figures()
    for block in ("all", "history"):
        assert everything[block].count("stock fa3, laprox fa3, stock-fp8 flashinfer") == 1
        assert everything[block].count("| 100 | 150 | 1.50 | 200 | **0.75** | ≥ 1.8 **missed** |") == 1
    # 90 tokens/s of LaProx beside the 95 of one stock; its 2 % beside the 0.5 % of it.
    assert "| LaProx, 5 % | **90** | " in everything["points"] and "| **2 %** |" in everything["points"]


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
    [told] = headline.not_measured(of_today)
    assert "Stock with fp8 KV, or on flashinfer, was not measured" in told
    servers = {"servers": {"full": {"stock-fp8": {}}}}
    monkeypatch.setattr(headline, "serving", lambda: {speed.CHIP: servers})
    assert headline.not_measured(of_today) == []
    [told] = headline.not_measured([*of_today, older])
    assert f"torch {pinned['torch']}, sglang-kernel" in told and "torch 2.11.0, " in told
    monkeypatch.setattr(headline, "BUDGET", 0.05)
    assert "at the default budget**, 20 %" in headline.not_measured(of_today)[0]


def test_what_is_lost_stands_beside_what_is_won():
    stock = dict.fromkeys(("output_tok_s", "ttft_p50", "itl_p50", "itl_p99", "slots_mean", "again"), 10)
    laprox = stock | {"output_tok_s": 5, "ttft_p50": 20, "slots_mean": 1, "itl_p99": 15, "again": 30}
    pair = speed.Pair("one", ("stock", "laprox"), stock, laprox)
    told = headline.claims(dict.fromkeys((speed.AGENTS, speed.PARALLEL, speed.LONE, speed.SHORT), pair))
    assert [is_lost for is_lost, _ in told] == [True, True, False, True, True, True, False, True, True]
    rows = headline.two_columns(told).splitlines()[2:]
    assert rows[0].endswith(" | **0.50 times** the output tokens per second |")
    assert "(f) 1 KV slots pinned, not 10" in rows[1] and len(rows) == 7


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
