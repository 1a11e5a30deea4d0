"""The quality suite from its command line, with a real server of the 7M model."""

import json

import pytest

from benchmarks.quality.__main__ import main
from benchmarks.quality.record import row_of
from laprox_tools.needle import MODEL_PATH

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("quality") / "quality.json"


def run(results, prompts):
    arguments = ["synthetic", "--quick", "--model", str(MODEL_PATH), "--json", str(results)]
    assert main([*arguments, "--prompts", str(prompts)]) == 0
    return json.loads(results.read_text())


def test_the_server_keeps_what_the_reference_keeps(results, figures, capsys):
    content = run(results, 2)
    (part,) = content["parts"]
    replay = part["replay"]
    assert replay["cells"] > 10_000 and replay["equal"] > 0.999 * replay["cells"] and replay["gap"] < 1e-3
    assert replay["answers"] == replay["answers_equal"] == 12
    figures.append(f"quality suite: {replay['equal'] / replay['cells']:.3%} of the server's cells replayed")
    served = row_of(content["rows"], method="laprox", budget=0.1)
    paper = row_of(content["rows"], method="laprox (paper)", budget=0.1)
    assert served["prompts"] == paper["prompts"] == 2 and served["exact"] in (0, 50, 100)
    assert row_of(content["rows"], method="all KV")["kl"] == 0
    assert "passcodes, 2,048 tokens" in capsys.readouterr().out
    assert results.with_name("quality-curves.png").exists()


def test_what_is_measured_is_not_measured_again(results, monkeypatch):
    before = results.read_text()
    monkeypatch.setattr("benchmarks.quality.session.serve_all", None)
    run(results, 2)
    assert json.loads(results.read_text()) == json.loads(before)
