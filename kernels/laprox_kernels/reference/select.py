"""One exact top-K over all layers, heads and positions (LaProx, Algorithm 2)."""

import torch
import torch.nn.functional as F


def select(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The K highest scores of the whole model; of equal ones, those with the lower index.

    Args:
        scores: float32 ``[L, H, P]``; NaN counts as the lowest.
        k: number of cells to keep, 1 <= k <= L·H·P.

    Returns:
        kept: int64 ``[k]``, ascending indices into ``scores.flatten()``.
        cu_cells: int64 ``[L·H + 1]``, offsets in ``kept`` of each (layer, head).
    """
    layers, heads, length = scores.shape
    flat = scores.flatten()
    flat = flat.masked_fill(flat.isnan(), float("-inf"))
    order = flat.sort(descending=True, stable=True).indices
    kept = order[:k].sort().values
    counts = torch.bincount(kept // length, minlength=layers * heads)
    return kept, F.pad(counts.cumsum(0), (1, 0))
