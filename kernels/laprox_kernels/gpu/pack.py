"""Packs kept cells into a view: in one launch, or in two where the view's slots are among those read."""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl

from laprox_kernels.gpu.support import Unsupported, check, check_whole_pool
from laprox_kernels.reference.pack import words

BLOCK = 32
WARPS = 4


@triton.jit
def _address(slots, kept, index, used, length, CELLS: tl.constexpr, FLAT: tl.constexpr):
    """Cell of the pool that each kept one is, and its position where it is one of a prompt's."""
    if FLAT:
        cell = tl.load(kept + index, mask=used, other=0)
        return cell, index
    else:
        cell = tl.load(kept + index, mask=used, other=0).to(tl.int32)
        position = cell % length
        slot = tl.load(slots + position, mask=used, other=0)
        return slot * CELLS + cell // length, position


@triton.jit(do_not_specialize=["number", "length"], do_not_specialize_on_alignment=["slots"])
def _save_kernel(
    keys, values, saved_keys, saved_values, slots, kept, number, length,
    CELLS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, DIM)
    used = index < number
    cell, _position = _address(slots, kept, index, used, length, CELLS, FLAT)
    source = cell[:, None] * DIM + channel[None, :]
    target = index.to(tl.int64)[:, None] * DIM + channel[None, :]
    tl.store(saved_keys + target, tl.load(keys + source, mask=used[:, None]), mask=used[:, None])
    tl.store(saved_values + target, tl.load(values + source, mask=used[:, None]), mask=used[:, None])


# ``number`` may be specialized: it is a multiple of L·H in every call, so it causes no recompilation, and the
# kernel is faster for it.
@triton.jit(do_not_specialize=["length"], do_not_specialize_on_alignment=["slots", "view"])
def _pack_kernel(
    keys, values, saved_keys, saved_values, slots, kept, view, positions, number, length,
    CELLS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, FLAT: tl.constexpr, STAGED: tl.constexpr,
    POSITIONS: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, DIM)
    used = index < number
    cell, position = _address(slots, kept, index, used, length, CELLS, FLAT)
    target = (tl.load(view + index // CELLS, mask=used, other=0) * CELLS + index % CELLS)[:, None] * DIM
    if STAGED:
        source = index.to(tl.int64)[:, None] * DIM + channel[None, :]
        k = tl.load(saved_keys + source, mask=used[:, None])
        v = tl.load(saved_values + source, mask=used[:, None])
    else:
        source = cell[:, None] * DIM + channel[None, :]
        k = tl.load(keys + source, mask=used[:, None])
        v = tl.load(values + source, mask=used[:, None])
    tl.store(keys + target + channel[None, :], k, mask=used[:, None])
    tl.store(values + target + channel[None, :], v, mask=used[:, None])
    if POSITIONS:
        tl.store(positions + index, position.to(positions.dtype.element_ty), mask=used)


def pack(
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor | None,
    kept: torch.Tensor,
    view: torch.Tensor,
    staged: bool = False,
    positions: torch.Tensor | None = None,
) -> None:
    """``reference.pack`` on the GPU."""
    check("pack", keys)
    check_whole_pool("pack", keys, values)
    keys, values = words(keys), words(values)
    cells, dim = keys.shape[1] * keys.shape[2], keys.shape[3]
    number = kept.numel()
    length = len(keys) if slots is None else slots.numel()
    most = number if slots is None else cells * length
    if number != cells * view.numel() or number > cells * length or most >= 2**31:
        raise Unsupported(
            f"pack: {number} kept of {cells} x {length} cells into {view.numel()} slots "
            f"(served: {cells} a slot, < 2^31)"
        )
    if slots is None and positions is not None:
        raise Unsupported("pack: cells of the pool have no positions (leave them out, or give slots)")
    if number == 0:
        return
    saved = torch.empty((2, number if staged else 0, dim), dtype=keys.dtype, device=keys.device)
    grid = (triton.cdiv(number, BLOCK),)
    sizes = {"CELLS": cells, "DIM": dim, "BLOCK": BLOCK, "FLAT": slots is None, "num_warps": WARPS}
    if staged:
        _save_kernel[grid](keys, values, saved[0], saved[1], slots, kept, number, length, **sizes)
    _pack_kernel[grid](
        keys, values, saved[0], saved[1], slots, kept, view, positions, number, length,
        STAGED=staged, POSITIONS=positions is not None, **sizes,
    )  # fmt: skip
