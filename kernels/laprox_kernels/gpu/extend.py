"""Ragged extend: new tokens over a compressed row and, causally, over themselves."""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl

from laprox_kernels.gpu.support import (
    check,
    check_whole_pool,
    last_contiguous,
    last_contiguous_rows,
    precision,
)
from laprox_kernels.rows import Rows

BLOCK_M = 128
BLOCK_N = 64
WARPS = 8
STAGES = 5  # two tiles in flight: the pipeliner spends every other stage on the load of the slots
LOG2E = 1.4426950408889634


@triton.jit
def _attend(
    q, output, sums, top, keys, values, slots, first, last, length, packed, remainder, fixed, token, scale,
    CELLS: tl.constexpr, DIM: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    lane = tl.arange(0, BLOCK_N)
    channel = tl.arange(0, DIM)
    for at in tl.range(first, last, num_stages=STAGES):
        key = at * BLOCK_N + lane
        used = key < length
        place = remainder + key
        column = tl.where(packed, place // CELLS, key)
        inside = tl.where(packed, place % CELLS, fixed)
        if MASKED:
            slot = tl.load(slots + column, mask=used, other=0).to(tl.int64)
            offset = (slot * CELLS + inside) * DIM
            k = tl.load(keys + offset[:, None] + channel[None, :], mask=used[:, None], other=0.0)
        else:
            slot = tl.load(slots + column).to(tl.int64)
            offset = (slot * CELLS + inside) * DIM
            k = tl.load(keys + offset[:, None] + channel[None, :])
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if CAUSAL:
            logits = tl.where(key[None, :] <= token[:, None], logits, -float("inf"))
        if MASKED:
            logits = tl.where(used[None, :], logits, -float("inf"))
        higher = tl.maximum(top, tl.max(logits, 1) * scale)
        # A row without a key so far has no finite maximum.
        anchor = tl.where(higher == -float("inf"), 0.0, higher)
        shrink = tl.exp2(top - anchor)
        share = tl.exp2(logits * scale - anchor[:, None])
        sums = sums * shrink + tl.sum(share, 1)
        if MASKED:
            v = tl.load(values + offset[:, None] + channel[None, :], mask=used[:, None], other=0.0)
        else:
            v = tl.load(values + offset[:, None] + channel[None, :])
        output = tl.dot(share.to(v.dtype), v, output * shrink[:, None], input_precision=PRECISION)
        top = higher
    return output, sums, top


@triton.jit(do_not_specialize=["slots_row", "dense_stride", "start_row", "cu_row", "cu_segment", "layer"])
def _extend_kernel(
    out, queries, keys, values, slots, dense, segment_start, cu_cells, own, cu_new,
    slots_row, dense_stride, start_row, cu_row, cu_segment, q_token, q_head, layer, scale,
    CELLS: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
    PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    head = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    start = tl.load(cu_new + row)
    count = (tl.load(cu_new + row + 1) - start).to(tl.int32)
    if block * BLOCK_M >= count * GROUP:
        return
    index = block * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.arange(0, DIM)
    token = index // GROUP
    written = token < count
    q_offset = (start + token) * q_token + (head * GROUP + index % GROUP) * q_head
    q = tl.load(queries + q_offset[:, None] + channel[None, :], mask=written[:, None], other=0.0)
    top = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    sums = tl.zeros((BLOCK_M,), tl.float32)
    output = tl.zeros((BLOCK_M, DIM), tl.float32)
    fixed = layer * HEADS + head

    for part in range(PARTS):
        packed = part > 0
        cu = cu_cells + row * cu_row + (part - 1) * cu_segment + fixed
        cell = tl.load(cu, mask=packed, other=0)
        length = (tl.load(cu + 1, mask=packed, other=0) - cell).to(tl.int32)
        length += tl.load(dense + row * dense_stride, mask=part == 0, other=0).to(tl.int32)
        column = tl.load(segment_start + row * start_row + part - 1, mask=packed, other=0) + cell // CELLS
        remainder = (cell % CELLS).to(tl.int32)
        row_slots = slots + row * slots_row + column
        output, sums, top = _attend(
            q, output, sums, top, keys, values, row_slots, 0, length // BLOCK_N, length, packed, remainder,
            fixed, token, scale, CELLS, DIM, BLOCK_N, False, False, PRECISION, STAGES,
        )  # fmt: skip
        output, sums, top = _attend(
            q, output, sums, top, keys, values, row_slots, length // BLOCK_N, tl.cdiv(length, BLOCK_N),
            length, packed, remainder, fixed, token, scale, CELLS, DIM, BLOCK_N, True, False, PRECISION, 1,
        )  # fmt: skip
    last = tl.minimum(count, (block * BLOCK_M + BLOCK_M - 1) // GROUP + 1)
    output, sums, top = _attend(
        q, output, sums, top, keys, values, own + start, 0, tl.cdiv(last, BLOCK_N), count, False, 0, fixed,
        token, scale, CELLS, DIM, BLOCK_N, True, True, PRECISION, 2,
    )  # fmt: skip

    offset = ((start + token) * HEADS * GROUP + head * GROUP + index % GROUP) * DIM
    tl.store(
        out + offset[:, None] + channel[None, :], (output / sums[:, None]).to(out.dtype.element_ty),
        mask=written[:, None],
    )  # fmt: skip


def extend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layer: int,
    rows: Rows,
    own: torch.Tensor,
    cu_new: torch.Tensor,
    longest: int,
    scale: float,
) -> torch.Tensor:
    """``reference.extend`` on the GPU; reads every length on the device."""
    check("extend", keys, queries)
    check_whole_pool("extend", keys, values)
    tokens, q_heads, dim = queries.shape
    layers, heads = keys.shape[1:3]
    group = q_heads // heads
    batch, segments = rows.cu_cells.shape[:2]
    out = torch.empty((tokens, q_heads, dim), dtype=queries.dtype, device=queries.device)
    if tokens == 0:
        return out
    rows, queries = last_contiguous_rows(rows), last_contiguous(queries)
    _extend_kernel[(triton.cdiv(longest * group, BLOCK_M), heads, batch)](
        out, queries, keys, values, rows.slots, rows.dense, rows.segment_start, rows.cu_cells, own, cu_new,
        rows.slots.stride(0), rows.dense.stride(0), rows.segment_start.stride(0), *rows.cu_cells.stride()[:2],
        *queries.stride()[:2], layer, scale * LOG2E,
        CELLS=layers * heads, HEADS=heads, GROUP=group, DIM=dim, PARTS=1 + segments,
        BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, PRECISION=precision(keys.dtype), STAGES=STAGES, num_warps=WARPS,
    )  # fmt: skip
    return out
