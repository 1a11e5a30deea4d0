"""Packs kept cells into the first slots of a private range, in two launches.

Targets fill the first m slots. Kept cells that already lie there are saved first; the second launch
writes every target, reading the saved copy or a slot behind the first m, which nothing writes.
"""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl

from laprox_kernels.gpu.support import Unsupported, check, check_whole_pool

BLOCK = 32
WARPS = 4


@triton.jit(do_not_specialize=["number", "length", "first_slots"], do_not_specialize_on_alignment=["slots"])
def _save_kernel(
    keys, values, saved_keys, saved_values, slots, kept, number, length, first_slots,
    CELLS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, DIM)
    cell = tl.load(kept + index, mask=index < number, other=0).to(tl.int32)
    position = cell % length
    inside = (index < number) & (position < first_slots)
    slot = tl.load(slots + position, mask=inside, other=0)
    source = (slot * CELLS + cell // length)[:, None] * DIM + channel[None, :]
    target = index.to(tl.int64)[:, None] * DIM + channel[None, :]
    k = tl.load(keys + source, mask=inside[:, None])
    v = tl.load(values + source, mask=inside[:, None])
    tl.store(saved_keys + target, k, mask=inside[:, None])
    tl.store(saved_values + target, v, mask=inside[:, None])


# The number of cells is a multiple of L·H in every call: specialized, it costs no recompilation, and pays.
@triton.jit(do_not_specialize=["length", "first_slots"], do_not_specialize_on_alignment=["slots"])
def _pack_kernel(
    keys, values, saved_keys, saved_values, slots, kept, positions, scores, kept_scores,
    number, length, first_slots, CELLS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,
    POSITIONS: tl.constexpr, SCORES: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, DIM)
    used = index < number
    flat = tl.load(kept + index, mask=used, other=0)
    cell = flat.to(tl.int32)
    position = cell % length
    saved = used & (position < first_slots)
    direct = used & (position >= first_slots)
    slot = tl.load(slots + position, mask=used, other=0)
    source = (slot * CELLS + cell // length)[:, None] * DIM + channel[None, :]
    copy = index.to(tl.int64)[:, None] * DIM + channel[None, :]
    target = (tl.load(slots + index // CELLS, mask=used, other=0) * CELLS + index % CELLS)[:, None] * DIM
    k = tl.load(keys + source, mask=direct[:, None], other=0.0)
    v = tl.load(values + source, mask=direct[:, None], other=0.0)
    k = tl.where(saved[:, None], tl.load(saved_keys + copy, mask=saved[:, None], other=0.0), k)
    v = tl.where(saved[:, None], tl.load(saved_values + copy, mask=saved[:, None], other=0.0), v)
    tl.store(keys + target + channel[None, :], k, mask=used[:, None])
    tl.store(values + target + channel[None, :], v, mask=used[:, None])
    if POSITIONS:
        tl.store(positions + index, position.to(positions.dtype.element_ty), mask=used)
    if SCORES:
        tl.store(kept_scores + index, tl.load(scores + flat, mask=used), mask=used)


def pack(
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    kept: torch.Tensor,
    positions: torch.Tensor | None = None,
    scores: torch.Tensor | None = None,
    kept_scores: torch.Tensor | None = None,
) -> None:
    """``reference.pack`` on the GPU."""
    check("pack", keys)
    check_whole_pool("pack", keys, values)
    cells, dim = keys.shape[1] * keys.shape[2], keys.shape[3]
    number, length = kept.numel(), slots.numel()
    if number % cells or number > cells * length or cells * length >= 2**31:
        raise Unsupported(
            f"pack: {number} kept of {cells} x {length} cells (served: a multiple of {cells}, < 2^31)"
        )
    if number == 0:
        return
    # Where a prompt keeps its beginning, every kept cell may lie inside the first slots.
    saved = torch.empty((2, number, dim), dtype=keys.dtype, device=keys.device)
    grid = (triton.cdiv(number, BLOCK),)
    sizes = {"CELLS": cells, "DIM": dim, "BLOCK": BLOCK, "num_warps": WARPS}
    _save_kernel[grid](
        keys, values, saved[0], saved[1], slots, kept, number, length, number // cells, **sizes
    )  # fmt: skip
    _pack_kernel[grid](
        keys, values, saved[0], saved[1], slots, kept, positions, scores, kept_scores,
        number, length, number // cells,
        POSITIONS=positions is not None, SCORES=scores is not None and kept_scores is not None, **sizes,
    )  # fmt: skip
