"""Adapters: the same prompts by two of them and by none, in one batch, each as by a model of its own."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.harness.client import facts
from benchmarks.harness.server import RETURN_KEPT
from benchmarks.quality.methods.choice import Chooser
from benchmarks.quality.methods.reader import Model
from benchmarks.quality.served import compare
from laprox_sglang.options.server import Config
from laprox_tools.needle import MODEL_PATH, Task
from prompts import EXACT, cells_in, difference
from server import Server

pytestmark = pytest.mark.full

UNPINNED = Path(__file__).with_name("unpinned")
RANK, BUDGET = 8, 0.2
# What each adapter changes: one of them W_O as well, of which scores know nothing.
ADAPTERS = {"one": ("q_proj", "k_proj", "v_proj"), "two": ("q_proj", "k_proj", "v_proj", "o_proj")}


def make_adapter(folder: Path, name: str, weights: dict[str, torch.Tensor]) -> Path:
    """Writes an adapter of random numbers, and the model that it makes of the 7M one; returns that."""
    matrices, merged = {}, dict(weights)
    for key, weight in weights.items():
        if key.split(".")[-2] in ADAPTERS[name]:
            down = torch.randn(RANK, weight.shape[1]) * weight.shape[1] ** -0.5
            up = torch.randn(weight.shape[0], RANK) * 0.02
            for letter, matrix in (("A", down), ("B", up)):
                matrices[f"base_model.model.{key.removesuffix('weight')}lora_{letter}.weight"] = matrix
            merged[key] = weight + up @ down
    adapter, model = folder / name, folder / f"{name}-merged"
    about = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ADAPTERS[name]}
    config = (MODEL_PATH / "config.json").read_text()
    for path, file, content, numbers in (
        (adapter, "adapter_config.json", json.dumps(about), matrices),
        (model, "config.json", config, merged),
    ):
        path.mkdir()
        (path / file).write_text(content)
        name = "adapter_model.safetensors" if path == adapter else "model.safetensors"
        save_file(numbers, path / name, {"format": "pt"})
    return model


def test_adapters_read_views_of_their_own(seed: int, tmp_path: Path, figures: list[str]) -> None:
    torch.manual_seed(seed)
    weights = load_file(MODEL_PATH / "model.safetensors")
    merged = {name: make_adapter(tmp_path, name, weights) for name in ADAPTERS}
    draw = random.Random(seed)
    prompts = [Task(draw.random()).batch(1, draw.randint(320, 900))[0].prompt_ids() for _ in range(2)]
    asked: list[tuple[str | None, list[int]]] = [
        (name, prompt) for prompt in prompts for name in (None, *ADAPTERS)
    ]
    flags = ("--enable-laprox", "--laprox-budget", str(BUDGET), *RETURN_KEPT, "--enable-lora")
    adapters = (
        "--lora-paths",
        *(f"{name}={tmp_path / name}" for name in ADAPTERS),
        "--max-loras-per-batch",
        "3",
    )
    backend = ("--lora-backend", "torch_native")
    path = os.pathsep.join(filter(None, (str(UNPINNED), os.environ.get("PYTHONPATH"))))
    with Server(*flags, *adapters, *backend, PYTHONPATH=path) as server:
        requests: list[dict[str, Any]] = [
            {
                "ids": prompt,
                "tokens": 9,
                "laprox": {"return_kept": True},
                "return_logprob": True,
                "lora_path": name,
            }
            for name, prompt in asked
        ]
        # Twice: prompts that come again hit the tree, each under its own adapter.
        replies = [server.generate_all(requests, len(requests)) for _ in range(2)]
        assert all(facts(reply)["cached_tokens"] for reply in replies[1])
    base = Model(MODEL_PATH)
    oracles = {None: base} | {name: Model(path) for name, path in merged.items()}
    worst, kept = 0.0, []
    for turn in replies:
        for (name, prompt), reply in zip(asked, turn, strict=True):
            oracle = oracles[name]
            # Scores are made of the W_O that all share.
            oracle.gram, oracle.output = base.gram, base.output
            prefix = oracle.prefill(prompt)
            worst = max(worst, difference(oracle, prefix, reply))
            found = compare(cells_in(reply, prefix), Chooser(oracle, prefix), Config(), BUDGET)
            assert found["gap"] < EXACT.gap, found
            kept.append(found["equal"] / found["cells"])
    assert sum(kept) > EXACT.equal * len(kept)
    figures.append(f"{len(kept)} prompts by two adapters and none: log-probs differ by at most {worst:.1e}")
