"""How a budget is spent on layers and heads: which cells are kept, given their scores."""

from typing import Literal, NamedTuple

import torch

import laprox_kernels as kernels
from laprox_sglang.ranks import ONE_RANK, Ranks


class Allocation(NamedTuple):
    """
    Attributes:
        scope: cells compete over the whole model, or each layer has the same number.
        floor: share of the average budget, beyond what is protected, that every KV head keeps in any case.
    """

    scope: Literal["model", "layer"]
    floor: float

    @property
    def layers_compete(self) -> bool:
        """Whether scores of different layers are compared with each other."""
        return self.scope == "model" and self.floor < 1

    def places(self, ranks: int) -> bool:
        """Whether it is by its place in its layer, over so many ranks, that a cell is kept."""
        return self.scope == "layer" and self.floor < 1 and ranks > 1


# The second number is the default floor. With a floor of 1 every head keeps its average: nothing competes.
ALLOCATORS = {
    "model": Allocation("model", 0.0),  # LaProx, Algorithm 2
    "layer": Allocation("layer", 0.2),  # Ada-KV (arXiv 2407.11550), its safeguard
    "uniform": Allocation("model", 1.0),  # SnapKV and most others
}


def allocation(name: str, floor: float | None = None) -> Allocation:
    """One of the ``ALLOCATORS``, with another floor than its own where one is given.

    Raises:
        ValueError: there is none of that name, or none with that floor; one line that says why.
    """
    if name not in ALLOCATORS:
        raise ValueError(f"allocator {name!r} is not known; give one of {', '.join(ALLOCATORS)}")
    if floor is None:
        return ALLOCATORS[name]
    if name == "uniform":
        raise ValueError(
            f"floor {floor!r} with allocator uniform does nothing, as every head keeps the same number: "
            "leave it out, or give another allocator"
        )
    # NaN fails every comparison, so it fails this one.
    if not isinstance(floor, (int, float)) or isinstance(floor, bool) or not 0 <= floor <= 1:
        raise ValueError(f"floor {floor!r} must be a share, from 0 to 1")
    return ALLOCATORS[name]._replace(floor=floor)


def floor_cells(slots: int, protected: int, floor: float) -> int:
    """Cells that every KV head keeps in any case, of ``slots`` on average."""
    # 0.29 * 100 is 28.999999999999996, which is 29 cells.
    return protected + int(round(floor * (slots - protected), 6))


def keep(
    scores: torch.Tensor,
    slots: int,
    allocation: Allocation,
    protected: int,
    marked: torch.Tensor | None = None,
    ranks: Ranks = ONE_RANK,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cells to keep, exactly ``slots · L · H`` of them, without waiting for the device.

    Args:
        scores: float32 ``[L, H, P]``, contiguous, comparable as far as the allocation compares them.
            Overwritten, unless there is ``marked``.
        slots: average number of cells of a KV head, 1 <= slots <= P.
        protected: cells of every KV head whose score is +inf, at most ``slots``.
        marked: shaped as ``scores``, to be overwritten in their place. The scores of what is kept are then
            still there, ``scores.flatten()[kept]``, for ``keep_fewer``, which knows of one rank only.
        ranks: those that have the other heads of these layers, with which these compete.

    Returns:
        kept, cu_cells: as of ``laprox_kernels.select``.
    """
    layers, heads, _ = scores.shape
    if allocation.floor:
        kernels.floor(scores, floor_cells(slots, protected, allocation.floor), out=marked)
        scores = scores if marked is None else marked
    if places := allocation.places(ranks.size):
        kernels.place(scores, ranks.sum(kernels.count_scores(scores)))
    groups = 1 if places or allocation.scope == "model" else layers
    return kernels.select(scores, slots * layers * heads // groups, groups)


def keep_fewer(
    scores: torch.Tensor,
    cu_cells: torch.Tensor,
    layers: int,
    slots: int,
    allocation: Allocation,
    protected: int,
    marked: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the cells that ``keep`` has kept, those that it would have kept of the prompt for fewer slots.

    Args:
        scores: float32 ``[m·L·H]``, of the kept cells in their order, as ``keep`` was given them.
        cu_cells: int64 ``[L·H + 1]``, offsets of each (layer, head) in ``scores``.
        layers: L.
        slots: average number of cells of a KV head, 1 <= slots <= m.
        allocation, protected, marked: as of ``keep``.

    Returns:
        kept: int64 ``[slots · L · H]``, ascending indices into ``scores``.
        cu_cells: int64 ``[L·H + 1]``, offsets in ``kept`` of each (layer, head).
    """
    cells = len(cu_cells) - 1
    if allocation.floor:
        kernels.floor(scores, floor_cells(slots, protected, allocation.floor), cu_cells, marked)
        scores = scores if marked is None else marked
    groups = 1 if allocation.scope == "model" else layers
    # Heads are unequal, but what competes is not: every layer has m·H cells, or the whole model m·L·H.
    kept, _ = kernels.select(scores.view(groups, 1, -1), slots * cells // groups, groups)
    return kept, torch.searchsorted(kept, cu_cells)
