"""What is told of a view: what was kept in the heads of all ranks. Decoding reads none of it."""

import torch

from laprox_sglang.ranks import Ranks
from laprox_sglang.scorers.allocators import Allocation
from laprox_sglang.views.plan import Plan
from laprox_sglang.views.pressure import PARTS


def counts(
    kept: torch.Tensor, cu_cells: torch.Tensor, layers: int, length: int, ranks: Ranks
) -> torch.Tensor:
    """Offsets of each (layer, head) among the kept cells of all ranks, and of how many tokens these are.

    Args:
        kept: int64 ``[K]``, indices into this rank's ``[L, H, length]``.
        cu_cells: int64 ``[L·H + 1]``, offsets of each (layer, head) among them.

    Returns:
        int64 ``[L·H·R + 2]``, on the device. Heads of a layer stand in the order of the ranks.
    """
    cells = len(cu_cells) - 1
    tokens = torch.zeros(length, device=kept.device).index_fill_(0, kept % length, 1)
    said = ranks.gather(torch.cat([cu_cells.diff().float(), tokens]))
    numbers = cu_cells.new_zeros(cells * len(said) + 2)
    by_head = said[:, :cells].unflatten(1, (layers, -1)).transpose(0, 1).flatten()
    torch.cumsum(by_head.long(), 0, out=numbers[1:-1])
    numbers[-1] = said[:, cells:].sum(0).count_nonzero()
    return numbers


def positions(own: torch.Tensor, cu_cells: torch.Tensor, layers: int, ranks: Ranks) -> torch.Tensor:
    """Positions of the kept cells of all ranks, int32, in the order of ``counts``.

    Args:
        own: int32 ``[K]``, of this rank's, in (layer, head, position) order.
        cu_cells: as of ``counts``.
    """
    if ranks.size == 1:
        return own
    cells = torch.arange(len(own), device=own.device)
    heads = (len(cu_cells) - 1) // layers
    layer = torch.searchsorted(cu_cells, cells, right=True).sub_(1) // heads
    said = ranks.gather(torch.stack([layer, own]))
    in_order = said[:, 0].flatten().argsort(stable=True)
    return said[:, 1].flatten()[in_order].int()


def carried(
    scores: torch.Tensor, sums: torch.Tensor, plan: Plan, slots: int, allocation: Allocation
) -> torch.Tensor:
    """What a view's best slots carry of all that the prompt's candidates contribute: ``pressure.Holding``.

    Args:
        scores: float32 ``[m·C]``, of the view's cells, +inf where they are protected.
        sums: float32 ``[L]``, of all candidates of each layer.
        slots: m.

    Returns:
        float64 ``[PARTS + 1]``, on the device.
    """
    layers = len(sums)
    # Where layers compete, their scores are shares already. A head's floor is left aside.
    groups = 1 if allocation.layers_compete else layers
    shares = scores.view(groups, -1) / sums[:groups, None]
    shares.nan_to_num_(nan=0.0, posinf=0.0)
    best_first = shares.sort(dim=-1, descending=True).values.cumsum(dim=-1, dtype=torch.float64).sum(dim=0)
    parts = torch.arange(PARTS + 1, device=scores.device)
    ends = parts.mul_(slots - plan.least).div_(PARTS, rounding_mode="floor").add_(plan.least - plan.protected)
    counted = ends.mul_(scores.numel() // slots // groups)
    return best_first[counted.sub(1).clamp_(min=0)].mul_(counted > 0).div_(layers)
