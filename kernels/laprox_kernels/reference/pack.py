"""Copies the kept cells of a prompt together, into the slots of a view."""

import torch


def pack(
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    kept: torch.Tensor,
    view: torch.Tensor,
    staged: bool = False,
    positions: torch.Tensor | None = None,
) -> None:
    """The i-th kept cell goes to cell ``i % C`` of slot ``view[i // C]``.

    Args:
        keys, values: ``[slots, L, H, D]``, the whole pool, contiguous.
        slots: int64 ``[P]``, slots of the scored columns in order of position.
        kept: int64 ``[K]``, ascending indices into ``[L, H, P]`` (see ``select``), K a multiple of
            C = L·H.
        view: int64 ``[K / C]``.
        staged: slots of ``view`` may be among ``slots``; where they are, it must be said.
        positions: out, integers ``[K]``: position of each packed cell in ``slots``.
    """
    length = slots.numel()
    cells = keys.shape[1] * keys.shape[2]
    if kept.numel() != cells * view.numel():
        raise ValueError(f"pack: {kept.numel()} kept into {view.numel()} slots of {cells} cells")
    source = slots[kept % length] * cells + kept // length
    index = torch.arange(kept.numel(), device=kept.device)
    target = view[index // cells] * cells + index % cells
    for pool in (keys, values):
        flat = pool.view(-1, pool.shape[-1])
        # Gathered whole before anything is written: right whether staged or not.
        flat[target] = flat[source]
    if positions is not None:
        positions.copy_(kept % length)
