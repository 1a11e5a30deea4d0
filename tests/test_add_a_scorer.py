"""The guide for a scorer of one's own, by doing what it says: its code is read from the page itself."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from msgspec.structs import replace

from fakes import CONFIG, Scheduler, sglang_context
from laprox_patches.model import attention_backend
from laprox_sglang.options.server import ENVIRONMENT, Config
from laprox_sglang.scorers import SCORERS, find
from laprox_sglang.views.state import view_of
from scorer_cases import random_case

PAGE = Path(__file__).resolve().parent.parent / "docs" / "add-a-scorer.md"
SCORER, MEASURED = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
NAME = re.search(r"--laprox-scorer (\S+)", PAGE.read_text())[1]


@pytest.fixture
def name(tmp_path, monkeypatch) -> str:
    """The scorer's name, from a folder of its own."""
    module = NAME.partition(":")[0]
    (tmp_path / f"{module}.py").write_text(SCORER)
    monkeypatch.syspath_prepend(tmp_path)
    return NAME


def test_it_takes_twenty_lines_and_nothing_of_the_package(name):
    assert len(SCORER.splitlines()) <= 20
    assert name not in SCORERS and find(name) not in SCORERS.values()


def test_it_is_measured_beside_the_others(name, seed):
    case = random_case(seed)
    given = {"layers": case.layers(), "scores": case.unwritten(), "slots": case.slots}
    given |= {"sinks": case.sinks, "window": case.protected - case.sinks}
    exec(MEASURED, given)
    kept, cu_cells = given["kept"], given["cu_cells"]
    layers, heads, _ = given["scores"].shape
    assert len(kept) == case.slots * layers * heads and len(cu_cells) == layers * heads + 1
    for prompt in case.layers():
        group = len(prompt.attention) // prompt.heads
        for head, values in enumerate(prompt.values.unbind(1)):
            members = prompt.attention[head * group : (head + 1) * group]
            expected = members.mean(dim=(0, 1)) * values.norm(p=1, dim=1)
            torch.testing.assert_close(find(name)(prompt)[head], expected)


@pytest.mark.parametrize("allocator", ["model", "layer", "uniform"])
def test_it_is_served(name, allocator):
    prompt = [(i * i + i // 3) % 4 for i in range(40)]
    kept = {}
    with sglang_context():
        for scorer in (name, "laprox"):
            config = replace(CONFIG, scorer=scorer, allocator=allocator)
            scheduler = Scheduler(100, config=config)
            req = scheduler.arrive(prompt)
            scheduler.step()
            view = view_of(req)
            view.check_integrity(scheduler.rows[req.kv.req_pool_idx])
            kept[scorer] = view.positions.tolist()
            scheduler.run_until_idle()
    assert kept[name] != kept["laprox"]


def test_one_that_fails_stops_the_start_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "failing_scorer.py").write_text("def score(prompt):\n    raise KeyError('two\\nlines')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(attention_backend, "install", lambda: None)
    with sglang_context():
        made = Scheduler(64)
        runner = SimpleNamespace(
            server_args=SimpleNamespace(
                _laprox=replace(CONFIG, scorer="failing_scorer:score"),
                model_path="m",
                disable_overlap_schedule=True,
            ),
            is_draft_worker=False,
            device="cpu",
            model=made.model,
            model_config=SimpleNamespace(context_len=64),
            token_to_kv_pool=made.pool,
            req_to_token_pool=made.req_to_token_pool,
            dtype=torch.float32,
        )
        with pytest.raises(SystemExit) as error:
            attention_backend.wrap(made.backend, runner, None)
    message = str(error.value)
    assert (
        message.startswith("laprox: scorer 'failing_scorer:score' failed: KeyError") and "\n" not in message
    )


def test_its_name_is_a_server_option(name):
    config = Config.from_environment({ENVIRONMENT: Config(scorer=name).to_json()})
    assert config.method.scorer is find(name)
