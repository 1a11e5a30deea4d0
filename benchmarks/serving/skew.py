"""Gives the heads of a server's model uneven scores, so that its KV heads keep uneven numbers of cells.

Random weights score every token of every head about alike, and every head keeps about as many cells; the
heads of a trained model do not. Here the values get new weights, one SGLang weight update over HTTP: of each
KV head ``v = e^(σ z) · u (w · x)``, with u, w and z drawn. A token's score is ‖A‖ · ‖v W_O‖, so it varies
over tokens as ``|w · x|`` does, and over heads by the factor. Speed does not depend on weights otherwise.
"""

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.harness.client import Client, ClientError, check, facts
from laprox_sglang.report.positions import kept_positions

# As uneven as a trained model, with the default allocator: at 5 % of 4,000 and of 7,000 tokens of a novel
# the KV heads of SmolLM2-135M keep, of their mean share, 0.3 (least), 0.45 (10 %), 0.95 (median), 1.6 (90 %)
# and 2.2 (most).
SIGMA = 0.035
MAGNITUDE = 1e-3
SEED = 0
QUANTILES = (0, 10, 50, 90, 100)


def skew(server: Client, model: Path, layers: int) -> None:
    """Replaces the value projections of a server that is idle; they stay so until it ends.

    Raises:
        ClientError: it did not take them.
    """
    if not (model / "config.json").exists():
        raise ClientError(f"the shapes of {model} are not known: its server must be given a folder")
    with tempfile.TemporaryDirectory(prefix="laprox-skew-") as folder:
        save_file(value_weights(model, layers), Path(folder) / "model.safetensors")
        check(server.post("/update_weights_from_disk", model_path=folder, load_format="safetensors"))


def value_weights(model: Path, layers: int) -> dict[str, torch.Tensor]:
    """``v_proj`` of every layer, bf16 ``[H · D, hidden]``, of a Llama with the shapes of ``config.json``."""
    config = json.loads((model / "config.json").read_text())
    heads, size, hidden = (config[key] for key in ("num_key_value_heads", "head_dim", "hidden_size"))
    draw = torch.Generator().manual_seed(SEED)
    weights = {}
    for layer in range(layers):
        factors = torch.exp(SIGMA * torch.randn(heads, 1, 1, generator=draw))
        u, w = (torch.randn(heads, *shape, generator=draw) for shape in ((size, 1), (1, hidden)))
        # No head is longer than another by chance: the factor alone makes them uneven.
        u, w = u / u.std(1, keepdim=True), w / w.std(2, keepdim=True)
        values = (MAGNITUDE * factors * u * w).reshape(heads * size, hidden)
        weights[f"model.layers.{layer}.self_attn.v_proj.weight"] = values.bfloat16()
    return weights


def kept_by_head(server: Client, prompt: list[int]) -> list[list[int]]:
    """How many cells every KV head of every layer keeps of a prompt.

    Raises:
        ClientError: no reply, or the prompt was not pruned.
    """
    said = facts(server.generate(prompt, 2, {"return_kept": True}))
    if not said["pruned"]:
        raise ClientError(f"a prompt of {len(prompt)} tokens was not pruned: {said['reason']}")
    return [[len(head) for head in layer] for layer in kept_positions(said)]


def spread(kept: list[list[int]]) -> list[int]:
    """Least, 10 %, median, 90 % and most cells that a KV head keeps."""
    counts = sorted(count for layer in kept for count in layer)
    return [counts[(len(counts) - 1) * percent // 100] for percent in QUANTILES]
