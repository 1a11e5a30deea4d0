"""What every KV head keeps in any case, however the others score."""

import torch


def floor(scores: torch.Tensor, count: int) -> None:
    """Gives +inf to the ``count`` highest scores of every (layer, head); of equal ones, to the first.

    Args:
        scores: float32 ``[L, H, P]``, contiguous, written in place; NaN counts as the lowest.
        count: 0 <= count <= P.
    """
    order = scores.masked_fill(scores.isnan(), float("-inf")).sort(dim=-1, descending=True, stable=True)
    scores.scatter_(-1, order.indices[..., :count], float("inf"))
