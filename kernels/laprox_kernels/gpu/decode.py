"""Ragged decode: one new token per row over dense slots and packed segments.

Work is counted in tiles of keys. A *unit* is one part (the dense slots, or one segment) of one
(row, KV head); ``plan`` lays the tiles of all units in a line, and each program takes an equal
stretch of it, so that ragged lengths cost nothing and the grid never depends on them. What a
program has of a unit is a *piece*; a second kernel merges pieces by their log-sum-exp, where a
(row, KV head) has more than one. Its programs take the places of those that have ended and wait for
the rest. One kernel, in which the last program to leave a (row, KV head) merges its pieces, was
slower on an H200, most of all at batch 1.
"""

# mypy: allow-untyped-defs

from functools import cache

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from laprox_kernels.gpu.fp8 import even_and_odd
from laprox_kernels.gpu.support import (
    check,
    check_whole_pool,
    dot_dtype,
    last_contiguous,
    last_contiguous_rows,
    multiprocessors,
    precision,
    stages,
)
from laprox_kernels.rows import Rows

BLOCK_N = 128
PROGRAMS_PER_SM = 2
WARPS = 4
MERGE_WARPS = 1  # sums over pieces need no barrier
UNIT_BLOCK = 1024
LOG2E = 1.4426950408889634
TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


@triton.jit(do_not_specialize=["ends_layer", "dense_stride", "cu_row", "cu_segment", "first_layer", "units"])
def _plan_kernel(
    ends, dense, cu_cells, ends_layer, dense_stride, cu_row, cu_segment, first_layer, units,
    HEADS: tl.constexpr, PARTS: tl.constexpr, BLOCK_N: tl.constexpr, UNIT_BLOCK: tl.constexpr,
):  # fmt: skip
    layer = tl.program_id(0) + first_layer
    ends += tl.program_id(0) * ends_layer
    carry = tl.program_id(0) * 0
    for first in range(0, units, UNIT_BLOCK):
        unit = first + tl.arange(0, UNIT_BLOCK)
        used = unit < units
        part = unit % PARTS
        head = unit // PARTS % HEADS
        row = (unit // (PARTS * HEADS)).to(tl.int64)
        packed = used & (part > 0)
        cu = cu_cells + row * cu_row + (part - 1).to(tl.int64) * cu_segment + layer * HEADS + head
        length = tl.load(dense + row * dense_stride, mask=used & (part == 0), other=0)
        length += tl.load(cu + 1, mask=packed, other=0) - tl.load(cu, mask=packed, other=0)
        tiles = ((length + BLOCK_N - 1) // BLOCK_N).to(tl.int32)
        tl.store(ends + unit, carry + tl.cumsum(tiles, 0), mask=used)
        carry += tl.sum(tiles, 0)


@triton.jit
def _first_tile(program, total, programs):
    """Every program has ``total // programs`` tiles, the first few one more."""
    return program * (total // programs) + tl.minimum(program, total % programs)


@triton.jit
def _program_of(tile, total, programs):
    """The program that ``_first_tile`` gives a tile."""
    least = total // programs
    longer = total % programs
    return tl.maximum(tile // (least + 1), (tile - longer) // least)


@triton.jit
def _unit(
    ends, dense, segment_start, cu_cells, dense_stride, start_row, cu_row, cu_segment, layer, unit, units,
    HEADS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    real = unit < units
    part = unit % PARTS
    head = unit // PARTS % HEADS
    row = (unit // (PARTS * HEADS)).to(tl.int64)
    packed = real & (part > 0)
    segment = (part - 1).to(tl.int64)
    cu = cu_cells + row * cu_row + segment * cu_segment + layer * HEADS + head
    end = tl.load(ends + unit, mask=real, other=0)
    begin = tl.load(ends + unit - 1, mask=real & (unit > 0), other=0)
    cell = tl.load(cu, mask=packed, other=0)
    cell_end = tl.load(cu + 1, mask=packed, other=0)
    count = tl.load(dense + row * dense_stride, mask=real & (part == 0), other=0)
    start = tl.load(segment_start + row * start_row + segment, mask=packed, other=0)
    return end, begin, cell, cell_end, count, start


@triton.jit
def _alone(ends, unit, tiles, PARTS: tl.constexpr):
    """Whether a unit of so many tiles is all that its (row, KV head) has."""
    first = unit // PARTS * PARTS
    before = tl.load(ends + first - 1, mask=first > 0, other=0)
    return tl.load(ends + first + PARTS - 1) - before == tiles


@triton.jit(
    do_not_specialize=["slots_row", "dense_stride", "start_row", "cu_row", "cu_segment", "layer", "units"]
)
def _decode_kernel(
    out, queries, keys, values, pieces, weights, ends,
    slots, dense, segment_start, cu_cells,
    slots_row, dense_stride, start_row, cu_row, cu_segment, q_row, q_head,
    layer, units, scale, value_scale,
    CELLS: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
    PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, UNIT_BLOCK: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    counter = tl.arange(0, UNIT_BLOCK)
    first_ends = tl.load(ends + counter, mask=counter < units, other=2147483647)
    total = tl.load(ends + units - 1)
    tile = _first_tile(program, total, tl.num_programs(0))
    stop = _first_tile(program + 1, total, tl.num_programs(0))
    if tile == stop:
        # There are more programs than tiles.
        return
    if DEPENDENT:
        gdc_launch_dependents()
    unit = tl.sum((first_ends <= tile).to(tl.int32), 0)
    for first in range(UNIT_BLOCK, units, UNIT_BLOCK):
        more_ends = tl.load(ends + first + counter, mask=first + counter < units, other=2147483647)
        unit += tl.sum((more_ends <= tile).to(tl.int32), 0)

    member = tl.arange(0, BLOCK_M)
    channel = tl.arange(0, DIM)
    lane = tl.arange(0, BLOCK_N)
    FP8: tl.constexpr = values.dtype.element_ty == tl.float8e4nv
    if FP8:
        pairs = values.to(tl.pointer_type(tl.int16), bitcast=True)
        pair = tl.arange(0, DIM // 2)
    end, begin, cell, cell_end, count, start = _unit(
        ends, dense, segment_start, cu_cells, dense_stride, start_row, cu_row, cu_segment, layer, unit, units,
        HEADS, PARTS,
    )  # fmt: skip
    while tile < stop:
        # Loads what describes the next unit now, so that it arrives while this unit is computed.
        next_end, next_begin, next_cell, next_cell_end, next_count, next_start = _unit(
            ends, dense, segment_start, cu_cells, dense_stride, start_row, cu_row, cu_segment, layer,
            unit + 1, units, HEADS, PARTS,
        )  # fmt: skip
        until = tl.minimum(end, stop)
        if until > tile:
            packed = unit % PARTS > 0
            head = unit // PARTS % HEADS
            row = (unit // (PARTS * HEADS)).to(tl.int64)
            length = (cell_end - cell + count).to(tl.int32)
            remainder = (cell % CELLS).to(tl.int32)
            row_slots = slots + row * slots_row + start + cell // CELLS

            group = head * GROUP + member
            q = tl.load(
                queries + row * q_row + group[:, None] * q_head + channel[None, :],
                mask=(member < GROUP)[:, None], other=0.0,
            ).to(DOT)  # fmt: skip
            top = tl.full((BLOCK_M,), -float("inf"), tl.float32)
            sums = tl.zeros((BLOCK_M,), tl.float32)
            output = tl.zeros((BLOCK_M, DIM // 2 if FP8 else DIM), tl.float32)
            if FP8:
                output_odd = output
            for at in tl.range(tile - begin, until - begin, num_stages=STAGES):
                key = at * BLOCK_N + lane
                used = key < length
                place = remainder + key
                column = tl.where(packed, place // CELLS, key)
                slot = tl.load(row_slots + column, mask=used, other=0).to(tl.int64)
                inside = tl.where(packed, place % CELLS, layer * HEADS + head)
                offset = (slot * CELLS + inside) * DIM
                k = tl.load(keys + offset[:, None] + channel[None, :], mask=used[:, None], other=0.0)
                logits = tl.dot(q, tl.trans(k.to(DOT)), input_precision=PRECISION) * scale
                logits = tl.where(used[None, :], logits, -float("inf"))
                higher = tl.maximum(top, tl.max(logits, 1))
                shrink = tl.exp2(top - higher)
                share_of = tl.exp2(logits - higher[:, None])
                sums = sums * shrink + tl.sum(share_of, 1)
                if FP8:
                    v = tl.load(pairs + offset[:, None] // 2 + pair[None, :], mask=used[:, None], other=0)
                    v, odd = even_and_odd(v)
                    output_odd = tl.dot(share_of.to(DOT), odd, output_odd * shrink[:, None])
                else:
                    v = tl.load(values + offset[:, None] + channel[None, :], mask=used[:, None], other=0.0)
                output = tl.dot(
                    share_of.to(DOT), v.to(DOT), output * shrink[:, None], input_precision=PRECISION
                )  # fmt: skip
                top = higher
            if FP8:
                output = tl.join(output, output_odd).reshape(BLOCK_M, DIM)
            output = output / sums[:, None] * value_scale
            own = (member < GROUP)[:, None]
            if (until - tile == end - begin) & _alone(ends, unit, end - begin, PARTS):
                target = (row * HEADS * GROUP + group) * DIM
                final = output.to(out.dtype.element_ty)
                tl.store(out + target[:, None] + channel[None, :], final, mask=own)
            else:
                # Each piece needs a place of its own. From one piece to the next, in the order of the
                # tiles, the program or the unit or both go up, and neither goes down: no sum comes twice.
                piece = ((program + unit) * GROUP + member).to(tl.int64)
                tl.store(pieces + piece[:, None] * DIM + channel[None, :], output, mask=own)
                tl.store(weights + piece, top + tl.log2(sums), mask=member < GROUP)
        tile = until
        unit += 1
        end, begin, cell = next_end, next_begin, next_cell
        cell_end, count, start = next_cell_end, next_count, next_start


@triton.jit(do_not_specialize=["units", "programs"])
def _merge_kernel(
    out, pieces, weights, ends, units, programs,
    GROUP: tl.constexpr, DIM: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    row_head = tl.program_id(0)
    member = tl.program_id(1)
    channel = tl.arange(0, DIM)
    total = tl.load(ends + units - 1)
    # Where there are more programs than tiles, the first ones have a tile each and the others none.
    programs = tl.minimum(programs, total)
    first_unit = row_head * PARTS
    begin = tl.load(ends + first_unit - 1, mask=first_unit > 0, other=0)
    end = tl.load(ends + first_unit + PARTS - 1)
    if _program_of(begin, total, programs) == _program_of(end - 1, total, programs):
        parts = 0
        for part in range(PARTS):
            until = tl.load(ends + first_unit + part)
            parts += (until > begin).to(tl.int32)
            begin = until
        if parts == 1:
            # The decode kernel has written the output itself. It must still be waited for: the next kernel
            # waits for this one only.
            if DEPENDENT:
                gdc_wait()
            return
    top = tl.full((1,), -float("inf"), tl.float32)
    sums = tl.zeros((1,), tl.float32)
    output = tl.zeros((DIM,), tl.float32)
    for part in range(PARTS):
        unit = row_head * PARTS + part
        begin = tl.load(ends + unit - 1, mask=unit > 0, other=0)
        end = tl.load(ends + unit)
        if end > begin:
            start = _program_of(begin, total, programs) + unit
            last = _program_of(end - 1, total, programs) + unit
            # The pieces are the first thing read of the decode kernel's output, so it is waited for here.
            # They are loaded past L1 (.cg), which may still hold the pieces of an earlier layer.
            if DEPENDENT:
                gdc_wait()
            for first in range(start, last + 1, BLOCK):
                index = first + tl.arange(0, BLOCK)
                used = index <= last
                piece = (index * GROUP + member).to(tl.int64)
                weight = tl.load(weights + piece, mask=used, other=-float("inf"), cache_modifier=".cg")
                higher = tl.maximum(top, tl.max(weight, 0))
                shrink = tl.exp2(top - higher)
                share_of = tl.exp2(weight - higher)
                values = tl.load(
                    pieces + piece[:, None] * DIM + channel[None, :],
                    mask=used[:, None], other=0.0, cache_modifier=".cg",
                )  # fmt: skip
                output = output * shrink + tl.sum(share_of[:, None] * values, 0)
                sums = sums * shrink + tl.sum(share_of, 0)
                top = higher
    at = (row_head * GROUP + member).to(tl.int64)
    tl.store(out + at * DIM + channel, (output / sums).to(out.dtype.element_ty))


@cache
def _dependent(device: torch.device) -> bool:
    """Whether a kernel can start while the one before it ends, and wait for it inside: from sm_90 on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def most_programs(device: torch.device, row_heads: int) -> int:
    """Programs of a launch. Where there are nearly as many (row, KV head), one for each: dense rows of
    one length, the common benchmark, are then not cut, which is worth 0.6 % on an H200."""
    most = multiprocessors(device) * PROGRAMS_PER_SM
    return row_heads if 0.95 * most <= row_heads <= most else most


def plan(rows: Rows, layers: int, heads: int, first_layer: int = 0) -> torch.Tensor:
    """Running sum of tiles over the units of each layer: int32 ``[layers, B·heads·(1 + S)]``.

    Depends on ``rows`` alone: one call serves every layer of a step, and a graph that captures it.
    """
    batch, segments = rows.cu_cells.shape[:2]
    units = batch * heads * (1 + segments)
    # Every layer's part begins at a multiple of 16 bytes; for one that did not Triton would compile decode
    # anew.
    aligned = triton.cdiv(units, 4) * 4
    ends = torch.empty((layers, aligned), dtype=torch.int32, device=rows.slots.device)[:, :units]
    if units:
        _plan_kernel[(layers,)](
            ends, rows.dense, rows.cu_cells, aligned, rows.dense.stride(0), *rows.cu_cells.stride()[:2],
            first_layer, units, HEADS=heads, PARTS=1 + segments, BLOCK_N=BLOCK_N, UNIT_BLOCK=UNIT_BLOCK,
        )  # fmt: skip
    return ends


def decode(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layer: int,
    rows: Rows,
    scale: float,
    ends: torch.Tensor | None = None,
    value_scale: float = 1.0,
) -> torch.Tensor:
    """``reference.decode`` on the GPU; fixed grid, reads every length on the device.

    Args:
        ends: ``plan`` of all layers for these rows; computed for this layer alone if None.
    """
    check("decode", keys, queries)
    check_whole_pool("decode", keys, values)
    batch, q_heads, dim = queries.shape
    layers, heads = keys.shape[1:3]
    group = q_heads // heads
    out = torch.empty((batch, q_heads, dim), dtype=queries.dtype, device=queries.device)
    if batch == 0:
        return out
    rows = last_contiguous_rows(rows)
    parts = 1 + rows.cu_cells.shape[1]
    units = batch * heads * parts
    ends = plan(rows, 1, heads, layer)[0] if ends is None else ends[layer]
    programs = most_programs(queries.device, batch * heads)
    pieces = torch.empty((programs + units, group, dim), dtype=torch.float32, device=queries.device)
    weights = torch.empty((programs + units, group), dtype=torch.float32, device=queries.device)
    queries, dot = last_contiguous(queries), dot_dtype(keys.dtype)
    dependent = _dependent(queries.device)
    _decode_kernel[(programs,)](
        out, queries, keys, values, pieces, weights, ends,
        rows.slots, rows.dense, rows.segment_start, rows.cu_cells,
        rows.slots.stride(0), rows.dense.stride(0), rows.segment_start.stride(0), *rows.cu_cells.stride()[:2],
        *queries.stride()[:2], layer, units, scale * LOG2E, value_scale,
        CELLS=layers * heads, HEADS=heads, GROUP=group, DIM=dim, PARTS=parts,
        BLOCK_M=16, BLOCK_N=BLOCK_N, UNIT_BLOCK=UNIT_BLOCK, DOT=TYPES[dot], PRECISION=precision(dot),
        STAGES=stages(keys.dtype), DEPENDENT=dependent, num_warps=WARPS,
    )  # fmt: skip
    _merge_kernel[(batch * heads, group)](
        out, pieces, weights, ends, units, programs,
        GROUP=group, DIM=dim, PARTS=parts, BLOCK=16,
        DEPENDENT=dependent, num_warps=MERGE_WARPS, **({"launch_pdl": True} if dependent else {}),
    )  # fmt: skip
    return out
