"""Copies kept cells together, into the slots of a view."""

import torch

# Integers as wide as a number of a pool.
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def words(pool: torch.Tensor) -> torch.Tensor:
    """The same memory in integers: cells are moved bit by bit, and torch writes no fp8 by index."""
    return pool.view(WORDS[pool.element_size()])


def pack(
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor | None,
    kept: torch.Tensor,
    view: torch.Tensor,
    staged: bool = False,
    positions: torch.Tensor | None = None,
) -> None:
    """The i-th kept cell goes to cell ``i % C`` of slot ``view[i // C]``.

    Args:
        keys, values: ``[slots, L, H, D]``, the whole pool, contiguous.
        slots: int64 ``[P]``, slots of the scored columns in order of position. None where the cells come
            from anywhere in the pool: of a view, of several places.
        kept: int64 ``[K]``, K a multiple of C = L·H: ascending indices into ``[L, H, P]`` (see
            ``select``); without ``slots``, cells of the pool: ``slot · C + layer · H + head``.
        view: int64 ``[K / C]``.
        staged: slots of ``view`` may be among those read; where they are, it must be said.
        positions: out, integers ``[K]``: position of each packed cell in ``slots``.

    Raises:
        ValueError: K is not C cells a slot of ``view``, or positions are asked for without ``slots``.
    """
    cells = keys.shape[1] * keys.shape[2]
    if kept.numel() != cells * view.numel():
        raise ValueError(f"pack: {kept.numel()} kept into {view.numel()} slots of {cells} cells")
    if slots is None:
        if positions is not None:
            raise ValueError("pack: cells of the pool have no positions (leave them out, or give slots)")
        source = kept
    else:
        source = slots[kept % slots.numel()] * cells + kept // slots.numel()
    index = torch.arange(kept.numel(), device=kept.device)
    target = view[index // cells] * cells + index % cells
    for pool in (keys, values):
        flat = words(pool).view(-1, pool.shape[-1])
        # Gathered whole before anything is written: right whether staged or not.
        flat[target] = flat[source]
    if slots is not None and positions is not None:
        positions.copy_(kept % slots.numel())
