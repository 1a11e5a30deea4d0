"""Whether every rank keeps its best cells, as far as a test can tell which these are."""

import torch

# What the bins of places leave of a mantissa: none is wider than this share of a score in it.
BIN = 2**-7


def check_choice(
    kept: torch.Tensor, scores: torch.Tensor, by_place: bool, held: int = 0, rounding: float = 1e-5
) -> None:
    """Asserts that no rank keeps a cell that is certainly worse than one of those that it drops.

    Two cells may stand either way that round to the same. By place also two of whose bins, of other layers,
    one begins before the other ends: a place is interpolated in its bin, where scores lie unevenly.

    Args:
        kept: bool ``[R, L, h, P]``.
        scores: float32 of that shape, comparable as far as they are compared; +inf where a cell must be kept,
            NaN counts as the lowest.
        by_place: cells compete by their places in their layers, over all ranks; else by their scores.
        held: cells that every head keeps in any case, its best.
        rounding: share of a score that it may be off.
    """
    scores = scores.masked_fill(scores.isnan(), -torch.inf)
    must = scores == torch.inf
    may = must
    if held:
        cut = scores.topk(held).values[..., -1:]
        must, may = must | (scores > off(cut, rounding)), scores >= off(cut, -rounding)
    width = rounding + BIN if by_place else rounding
    first, last = -off(scores, width), -off(scores, -width)
    if by_place:
        # Those that a head holds have the first places of their layer.
        placed = scores.scatter(-1, scores.topk(held).indices, torch.inf) if held else scores
        for layer, in_order in enumerate(placed.transpose(0, 1).flatten(1).neg().sort().values):
            first[:, layer] = torch.searchsorted(in_order, first[:, layer].contiguous())
            last[:, layer] = torch.searchsorted(in_order, last[:, layer].contiguous(), right=True) - 1
    first.masked_fill_(may, -torch.inf)
    last.masked_fill_(must, -torch.inf)
    for rank, cells in enumerate(kept):
        worst, best = first[rank][cells].max(), last[rank][~cells].min()
        assert worst <= best, f"rank {rank} keeps a cell of place {worst} and drops one of {best}"


def off(scores: torch.Tensor, share: float) -> torch.Tensor:
    """Scores that are higher by a share of themselves, or lower by a negative one."""
    return torch.where(scores.isfinite(), scores + share * scores.abs(), scores)
