"""The quality suite from its command line, with a real server of the 7M model."""

import json

import pytest

from benchmarks.quality.__main__ import main
from laprox_tools.needle import MODEL_PATH

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("quality") / "quality.json"


def run(results, prompts):
    arguments = ["passcodes/2048", "--quick", "--model", str(MODEL_PATH), "--json", str(results)]
    assert main([*arguments, "--prompts", str(prompts)]) == 0
    return json.loads(results.read_text())


def test_the_server_keeps_what_the_reference_keeps(results, figures, capsys):
    content = run(results, 2)
    (part,) = content["parts"]
    replay = part["replay"]
    assert replay["cells"] > 10_000 and replay["equal"] > 0.999 * replay["cells"] and replay["gap"] < 1e-3
    assert replay["answers"] == replay["answers_equal"] == 12
    figures.append(f"quality suite: {replay['equal'] / replay['cells']:.3%} of the server's cells replayed")
    rows = {(row["method"], row["budget"]): row for row in content["rows"]}
    served, paper = (rows[name, 0.1] for name in ("laprox", "laprox (paper)"))
    assert served["prompts"] == paper["prompts"] == 2 and served["exact"] in (0, 50, 100)
    assert rows["all KV", 1.0]["kl"] == 0
    assert "2 documents of 2,048 tokens" in capsys.readouterr().out
    assert results.with_name("quality-curves.png").exists()


def test_what_is_measured_is_not_measured_again(results, monkeypatch):
    before = results.read_text()
    monkeypatch.setattr("benchmarks.quality.subject.serve_all", None)
    run(results, 2)
    assert json.loads(results.read_text()) == json.loads(before)
