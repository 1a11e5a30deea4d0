"""Moves the kept cells of a private range together, into the first of its slots."""

import torch


def pack(keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, kept: torch.Tensor) -> None:
    """Packs in place: the i-th kept cell goes to cell ``i % C`` of slot ``slots[i // C]``.

    Args:
        keys, values: ``[slots, L, H, D]``, the whole pool, contiguous.
        slots: int64 ``[P]``, slots of the private range in order of position.
        kept: int64 ``[K]``, ascending indices into ``[L, H, P]`` (see ``select``), K a multiple of
            C = L·H.
    """
    length = slots.numel()
    cells = keys.shape[1] * keys.shape[2]
    source = slots[kept % length] * cells + kept // length
    index = torch.arange(kept.numel(), device=kept.device)
    target = slots[index // cells] * cells + index % cells
    for pool in (keys, values):
        flat = pool.view(-1, pool.shape[-1])
        # Source and target overlap: the right side is gathered whole before anything is written.
        flat[target] = flat[source]
