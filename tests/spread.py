"""Models and ranks that spread the same heads otherwise: the 7M model, and itself with four KV heads.

Those are its two, each twice, and each for half of its query heads. So it computes the same.
"""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file, save_file

from laprox_tools.needle import MODEL_PATH

DIM = 64


class Spread(NamedTuple):
    """
    Attributes:
        ranks: how many share the heads.
        kv, query: heads of the 7M model, in the order in which the ranks have them.
        copied: SGLang itself gives several ranks the same KV head, and the 7M model is served as it is.
    """

    ranks: int
    kv: list[int]
    query: list[int]
    copied: bool = False


SPREADS = {
    # Both KV heads on each rank: its heads compete with each other, and with those of the other rank.
    "four-heads": Spread(2, [0, 1, 0, 1], [0, 1, 4, 5, 2, 3, 6, 7]),
    # They compete over ranks or not at all.
    "one-head": Spread(2, [0, 1], list(range(8))),
    "copies": Spread(4, [0, 0, 1, 1], list(range(8)), copied=True),
}


def write_model(spread: Spread, folder: Path) -> None:
    """A checkpoint whose KV heads are those of the ranks; ``folder`` must not exist."""
    shutil.copytree(MODEL_PATH, folder)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        kind = name.split(".")[-2]
        if kind == "o_proj":
            weights[name] = weight.unflatten(1, (-1, DIM))[:, spread.query].flatten(1)
        elif kind in ("q_proj", "k_proj", "v_proj"):
            order = spread.query if kind == "q_proj" else spread.kv
            weights[name] = weight.unflatten(0, (-1, DIM))[order].flatten(0, 1)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_key_value_heads": len(spread.kv)}))
