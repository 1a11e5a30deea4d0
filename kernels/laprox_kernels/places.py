"""Where cells stand among all cells of their layer, some of which are on other ranks: torch, on any device.

A rank has as many slots as any other, so of its heads, all layers together, it keeps a fixed number of cells.
If each of its layers kept the same number, heads would compete within a rank alone, and with one head a rank
not at all. So a rank keeps its cells by their places: what one rank would keep of these heads at the budget,
the same for all layers, that fills this rank's slots.
"""

import torch

# Scores are counted by the leading bits of an order-preserving key: sign, exponent, 7 bits of the mantissa.
# Between two bins a place is interpolated.
BINS, BELOW = 1 << 16, 1 << 16
# Cells at once: bounds the memory that it takes.
AT_ONCE = 1 << 20
# Of one of them: its key, its bin and its place, with what they are made of.
CELL_BYTES = 40


def placing_bytes(layers: int, cells: int) -> int:
    """Memory of ``count_scores`` and ``place``, at most.

    Args:
        cells: H·P, of a layer.
    """
    return 3 * 4 * layers * BINS + CELL_BYTES * max(cells, min(AT_ONCE, layers * cells))


def count_scores(scores: torch.Tensor) -> torch.Tensor:
    """How many scores of each layer are in each bin: whole numbers, float32 ``[L, BINS]``.

    Sums of them over ranks are exact in any order, up to 2^24 cells a layer.

    Args:
        scores: float32 ``[L, H, P]``, contiguous; NaN counts as the lowest.
    """
    flat = scores.flatten(1)
    counts = flat.new_zeros((len(flat), BINS))
    for part in parts(flat):
        bins, _ = binned(flat[part])
        counts[part].scatter_add_(1, bins, torch.ones_like(flat[part]))
    return counts


def place(scores: torch.Tensor, counts: torch.Tensor) -> None:
    """Makes of every score minus its place among ``counts``, in place; the best has place 1, about.

    Args:
        scores: as of ``count_scores``. Those of +inf stay so.
        counts: as of ``count_scores``, of these scores and any others.
    """
    flat = scores.view(len(scores), -1)
    above = counts.flip(1).cumsum_(1).flip(1).sub_(counts)
    for part in parts(flat):
        bins, share = binned(flat[part])
        places = counts[part].gather(1, bins).mul_(share).add_(above[part].gather(1, bins))
        flat[part] = places.neg_().masked_fill_(flat[part] == float("inf"), float("inf"))


def parts(flat: torch.Tensor) -> list[slice]:
    """Layers to take at once."""
    step = max(1, AT_ONCE // flat.shape[1])
    return [slice(first, first + step) for first in range(0, len(flat), step)]


def binned(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The bin of every score, int64; and how much of that is not below it, float32 above 0 and up to 1."""
    # Adding 0 makes +0 of -0.
    bits = scores.masked_fill(scores.isnan(), float("-inf")).add_(0).view(torch.int32)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (key >> 16).long() + BINS // 2, 1 - (key & (BELOW - 1)).float() / BELOW
