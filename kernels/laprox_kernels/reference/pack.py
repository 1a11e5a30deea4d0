"""Moves the kept cells of a private range together, into the first of its slots."""

import torch


def pack(
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    kept: torch.Tensor,
    positions: torch.Tensor | None = None,
    scores: torch.Tensor | None = None,
    kept_scores: torch.Tensor | None = None,
) -> None:
    """Packs in place: the i-th kept cell goes to cell ``i % C`` of slot ``slots[i // C]``.

    Args:
        keys, values: ``[slots, L, H, D]``, the whole pool, contiguous.
        slots: int64 ``[P]``, slots of the private range in order of position.
        kept: int64 ``[K]``, ascending indices into ``[L, H, P]`` (see ``select``), K a multiple of
            C = L·H.
        positions: out, integers ``[K]``: private position of each packed cell.
        scores: ``[L, H, P]``, contiguous, what ``kept_scores`` is taken from.
        kept_scores: out, ``[K]``: score of each packed cell.
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
    if positions is not None:
        positions.copy_(kept % length)
    if scores is not None and kept_scores is not None:
        kept_scores.copy_(scores.flatten()[kept])
