"""A server with a method of somebody's own: it keeps what the method says, by another implementation's KV."""

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from benchmarks.harness.client import facts
from benchmarks.harness.server import RETURN_KEPT
from benchmarks.quality.methods.reader import Model
from captured import Captured, load_model
from laprox_sglang.options.server import Config
from laprox_sglang.report.positions import kept_positions
from laprox_sglang.scorers import find
from laprox_sglang.scorers.allocators import keep
from laprox_sglang.scorers.rank import rank
from laprox_tools.needle import MODEL_PATH, Task
from prompts import difference
from server import Server
from test_add_a_scorer import NAME, SCORER

pytestmark = pytest.mark.full

CONFIG = {"allocator": "layer", "floor": 0.3, "pooling": "max", "pooling_kernel": 5, "window": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scorer")
    (folder / f"{NAME.partition(':')[0]}.py").write_text(SCORER)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    flags = [f"--laprox-{name.replace('_', '-')}={value}" for name, value in CONFIG.items()]
    with Server(
        "--enable-laprox", f"--laprox-scorer={NAME}", *flags, *RETURN_KEPT, PYTHONPATH=path
    ) as server:
        yield server


@pytest.mark.parametrize(("length", "slots", "start"), [(500, 60, 0), (900, 150, 0), (700, 70, 120)])
def test_it_keeps_what_the_method_says(server, folder, length, slots, start, seed, monkeypatch, figures):
    ids = Task(seed).batch(1, length)[0].prompt_ids()
    options = {"budget": slots, "keep_prefix": start, "return_kept": True}
    reply = server.generate(ids, 8, options, return_logprob=True)
    said = facts(reply)
    assert said["pruned"] and said["slots_after"] == slots and said["dense_tokens"] == start

    monkeypatch.syspath_prepend(folder)
    config = Config(scorer=NAME, **CONFIG)
    captured, sinks = Captured(load_model(), ids), max(0, config.sink_tokens - start)
    heads, dropped = captured.keys[0].shape[1], len(ids) - start
    scores = torch.empty((len(captured.keys), heads, dropped))
    scorer, pooling, allocation = config.method
    assert scorer is find(NAME)
    with torch.no_grad():
        rank(captured.prompts(config.window, start, sinks, slots), scorer, pooling, scores)
    kept, cu_cells = keep(scores.clone(), slots, allocation, config.window + sinks)

    served = [set(positions) for layer in kept_positions(said) for positions in layer]
    offline = [set((kept[a:b] % dropped + start).tolist()) for a, b in pairwise(cu_cells)]
    swapped = sum(len(a ^ b) for a, b in zip(served, offline, strict=True))
    figures.append(f"{NAME}, {length} tokens in {slots} slots: {swapped} of {len(kept)} kept cells differ")
    # Rounding of another forward pass may swap what lies at the cut, and no more.
    assert swapped <= 0.005 * len(kept)
    floor = config.window + sinks + int(0.3 * (slots - config.window - sinks))
    assert min(map(len, served)) >= floor
    assert {sum(map(len, served[i : i + heads])) for i in range(0, len(served), heads)} == {slots * heads}
    assert len({len(positions) for positions in served}) > 1
    assert said["erased_share"] == 1 - len(set().union(*served)) / dropped
    # And decodes over exactly that.
    oracle = Model(MODEL_PATH)
    difference(oracle, oracle.prefill(ids), reply)


def test_another_method_keeps_something_else(server, seed):
    """So that the comparison above cannot pass by chance: LaProx itself would not keep this."""
    ids = Task(seed).batch(1, 500)[0].prompt_ids()
    said = facts(server.generate(ids, 2, {"budget": 60, "return_kept": True}))
    config = Config(**CONFIG)
    captured = Captured(load_model(), ids)
    scores = torch.empty((len(captured.keys), captured.keys[0].shape[1], len(ids)))
    scorer, pooling, allocation = config.method
    with torch.no_grad():
        rank(captured.prompts(config.window, 0, config.sink_tokens, 60), scorer, pooling, scores)
    kept, cu_cells = keep(scores, 60, allocation, config.window + config.sink_tokens)
    served = [set(positions) for layer in kept_positions(said) for positions in layer]
    laprox = [set((kept[a:b] % len(ids)).tolist()) for a, b in pairwise(cu_cells)]
    assert sum(len(a ^ b) for a, b in zip(served, laprox, strict=True)) > 0.02 * len(kept)
