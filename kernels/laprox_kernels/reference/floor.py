"""What every KV head keeps in any case, however the others score."""

import torch


def floor(
    scores: torch.Tensor, count: int, cu_cells: torch.Tensor | None = None, out: torch.Tensor | None = None
) -> None:
    """Gives +inf to the ``count`` highest scores of every (layer, head); of equal ones, to the first.

    Args:
        scores: float32 ``[L, H, P]``, contiguous; of heads that have kept unequal numbers of cells ``[K]``,
            in (layer, head, position) order. NaN counts as the lowest.
        count: from 0 to P; of a head with fewer cells than that, all get +inf.
        cu_cells: int64 ``[L·H + 1]``, offsets of each (layer, head) in ``[K]``, as of ``select``.
        out: float32, shaped as ``scores``, contiguous, written whole; ``scores`` itself if None.
    """
    out = scores if out is None else out.copy_(scores)
    ranked = scores.masked_fill(scores.isnan(), float("-inf")).flatten()
    if cu_cells is None:
        lengths = [scores.shape[-1]] * (scores.shape[0] * scores.shape[1])
    else:
        lengths = cu_cells.diff().tolist()
    for head, row in zip(ranked.split(lengths), out.view(-1).split(lengths), strict=True):
        row[head.sort(descending=True, stable=True).indices[:count]] = float("inf")
