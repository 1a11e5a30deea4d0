"""Exact top-K over all layers, heads and positions (LaProx, Algorithm 2), or over each layer by itself."""

import torch
import torch.nn.functional as F


def select(scores: torch.Tensor, k: int, groups: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """The k highest scores of each group; of equal ones, those with the lower index.

    Args:
        scores: float32 ``[L, H, P]``; NaN counts as the lowest.
        k: number of cells to keep of a group, 1 <= k <= L·H·P / groups.
        groups: 1 is the whole model, L is each layer by itself.

    Returns:
        kept: int64 ``[groups · k]``, ascending indices into ``scores.flatten()``.
        cu_cells: int64 ``[L·H + 1]``, offsets in ``kept`` of each (layer, head).
    """
    layers, heads, length = scores.shape
    grouped = scores.reshape(groups, -1)
    grouped = grouped.masked_fill(grouped.isnan(), float("-inf"))
    order = grouped.sort(dim=-1, descending=True, stable=True).indices
    starts = torch.arange(groups, device=scores.device)[:, None] * grouped.shape[1]
    kept = (order[:, :k].sort(dim=-1).values + starts).flatten()
    counts = torch.bincount(kept // length, minlength=layers * heads)
    return kept, F.pad(counts.cumsum(0), (1, 0))
