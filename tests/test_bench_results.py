"""The serving benchmark's results file: rows of parts, their comparison, and what does not go together."""

import json

import pytest

from benchmarks.harness.files import RecordError
from benchmarks.serving import merge
from benchmarks.serving.load import workloads
from benchmarks.serving.record import Record, backends, by_workload, dumps

TABLE = workloads.workloads(False)


def fill(path, rows, backend=None):
    """Writes (workload, server, figures) of one run."""
    record = Record(path, False, TABLE, backend)
    for name, server, figures in rows:
        record.put(TABLE[name], server, figures, "fa3" if server != "stock-fp8" else "flashinfer")
    return record


def rows_of(path):
    return {row["workload"]: row for row in json.loads(path.read_text())["rows"]}


def test_rows_of_parts_merge_into_one_file(tmp_path):
    path = tmp_path / "serving.json"
    fill(path, [("e", "stock", {"output_tok_s": 100.0, "itl_p50": 10.0, "slots_over_time": [[0, 1]]})])
    fill(path, [("a", "laprox", {"output_tok_s": 5.0}), ("e", "laprox", {"output_tok_s": 300.0})])
    assert set(json.loads(path.read_text())) == {"chip", "quick", "servers", "rows"}
    rows = rows_of(path)
    assert list(rows) == ["e", "a"]
    assert rows["e"]["ratio"] == {"output_tok_s": 3.0} and rows["e"]["backend"] == "default"
    for server in ("stock", "laprox"):
        side = rows["e"][server]
        assert "pytest" in side["command"] and side["attention_backend"] == "fa3"
        assert {"date", "versions", "commit", "dirty"} <= set(side)
    assert rows["a"]["stock"] is None


def test_a_third_server_has_a_ratio_of_its_own(tmp_path):
    path = tmp_path / "serving.json"
    speeds = {"stock": 100.0, "laprox": 150.0, "stock-fp8": 200.0, "laprox-fp8": 300.0}
    fill(path, [("f", server, {"output_tok_s": speed}) for server, speed in speeds.items()])
    row = rows_of(path)["f"]
    assert row["ratio"] == {"output_tok_s": 1.5} and row["ratio_fp8"] == {"output_tok_s": 0.75}
    assert row["fp8_ratio"] == {"output_tok_s": 1.5} and row["fp8_ratio_laprox"] == {"output_tok_s": 2.0}
    assert backends(row) == "stock fa3, laprox fa3, stock-fp8 flashinfer, laprox-fp8 fa3"


def test_what_this_commit_has_measured_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.harness.provenance.REVISION", {"commit": "abc", "dirty": False})
    record = fill(tmp_path / "x.json", [("e", "stock", {"output_tok_s": 1.0})])
    record.put_failure(TABLE["a"], "stock", "it broke", "fa3")
    record.put_failure(TABLE["e"], "stock", "it broke", "fa3")
    assert record.holds("e", "stock") and not record.holds("e", "laprox") and not record.holds("a", "stock")
    # A failure is a point of the record, but takes no figures away.
    assert record.figures("a", "stock")["failed"] == "it broke"
    assert record.figures("e", "stock")["output_tok_s"] == 1.0
    for revision in ({"commit": "def", "dirty": False}, {"commit": "unknown", "dirty": None}):
        monkeypatch.setattr("benchmarks.harness.provenance.REVISION", revision)
        assert not record.holds("e", "stock")


def test_rows_of_a_backend_that_was_asked_for_stand_apart(tmp_path):
    path = tmp_path / "serving.json"
    fill(path, [("e", "stock", {"output_tok_s": 1.0})], "triton")
    fill(path, [("e", "stock", {"output_tok_s": 2.0})])
    rows = json.loads(path.read_text())["rows"]
    assert [(row["backend"], row["stock"]["output_tok_s"]) for row in rows] == [
        ("default", 2.0),
        ("triton", 1.0),
    ]
    assert by_workload(rows)["e"]["backend"] == "default"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": 3}'])
def test_a_file_of_something_else_is_left_alone(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(RecordError, match="does not hold results"):
        Record(path, False, {})
    assert path.read_text() == text


def test_a_quick_run_does_not_spoil_a_full_one(tmp_path):
    path = tmp_path / "serving.json"
    fill(path, [("e", "stock", {})])
    with pytest.raises(RecordError, match="give another file"):
        Record(path, True, TABLE)


def test_innermost_lists_and_records_take_a_line():
    text = dumps({"a": [[1, 2], [3]], "b": {"c": {"d": "x y", "e": 1}}})
    assert json.loads(text) == {"a": [[1, 2], [3]], "b": {"c": {"d": "x y", "e": 1}}}
    assert "[1, 2]" in text and '"c": {"d": "x y", "e": 1}' in text


def test_parts_become_one_file(tmp_path, capsys):
    first, second, out = (tmp_path / f"{name}.json" for name in ("first", "second", "out"))
    fill(first, [("f", "stock", {"output_tok_s": 100.0}), ("e", "stock", {"output_tok_s": 1.0})])
    fill(second, [("f", "laprox", {"output_tok_s": 400.0})])
    assert merge.main([str(first), str(second), "--json", str(out)]) == 0
    rows = rows_of(out)
    assert list(rows) == ["e", "f"]
    assert rows["f"]["ratio"] == {"output_tok_s": 4.0}
    # The last part counts, but a failure takes no figures away.
    fill(second, [("e", "stock", {"output_tok_s": 2.0}), ("f", "stock", {"failed": "no"})])
    assert merge.main([str(first), str(second), "--json", str(out)]) == 0
    assert rows_of(out)["e"]["stock"]["output_tok_s"] == 2.0
    assert rows_of(out)["f"]["stock"]["output_tok_s"] == 100.0


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda part: part.update(chip="another"), "several chips"),
        (lambda part: part.update(quick=True), "several sizes"),
        (
            lambda part: part["rows"][0]["laprox"]["versions"].update(sglang="9"),
            "e was measured on several SGLangs",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(tmp_path, capsys, change, line):
    first, second, out = (tmp_path / f"{name}.json" for name in ("first", "second", "out"))
    fill(first, [("e", "stock", {"output_tok_s": 100.0})])
    fill(second, [("e", "laprox", {"output_tok_s": 400.0})])
    content = json.loads(second.read_text())
    change(content)
    second.write_text(json.dumps(content))
    assert merge.main([str(first), str(second), "--json", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("merge: ") and line in said and said.count("\n") == 1 and not out.exists()
