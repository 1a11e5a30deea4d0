"""Triton kernels behind ``score``: the window's rows, the contributions of the candidates, pooling.

Heads are counted over all layers: a pool ``[slots, L, H, D]`` is ``[slots, L·H, D]``, and one launch
serves every layer. The window's rows of one KV head are (query head of its group, place in the
window), the window padded to a power of two.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from laprox_kernels.gpu.fp8 import dealt

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["positions", "stretch"], do_not_specialize_on_alignment=["scales"])
def rows_kernel(
    queries, keys, row, scales, tops, sums_out, positions, window, stretch, q_place, q_head, k_slot, k_head,
    HEADS: tl.constexpr, GROUP: tl.constexpr, WINDOW: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(0)
    head = tl.program_id(1)
    scale = tl.load(scales + head // HEADS) * LOG2E
    index = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.arange(0, DIM)
    lane = tl.arange(0, BLOCK_N)
    member = index // WINDOW
    place = index % WINDOW
    real = (member < GROUP) & (place < window)
    q_offset = place * q_place + (head * GROUP + member) * q_head
    q = tl.load(queries + q_offset[:, None] + channel[None, :], mask=real[:, None], other=0.0)
    last = tl.where(real, positions - window + place, positions - 1)
    top = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    sums = tl.zeros((BLOCK_M,), tl.float32)
    first = split * stretch * BLOCK_N
    stop = tl.minimum(first + stretch * BLOCK_N, positions)
    # Positions up to the first of the window are seen by all its rows.
    seen = tl.maximum(first, tl.minimum(stop, positions - window + 1))
    whole = first + (seen - first) // BLOCK_N * BLOCK_N
    for at in tl.range(first, whole, BLOCK_N, num_stages=STAGES):
        slot = tl.load(row + at + lane)
        k = tl.load(keys + (slot * k_slot + head * k_head)[:, None] + channel[None, :]).to(q.dtype)
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        higher = tl.maximum(top, tl.max(logits, 1) * scale)
        sums = sums * tl.exp2(top - higher) + tl.sum(tl.exp2(logits * scale - higher[:, None]), 1)
        top = higher
    for at in tl.range(whole, stop, BLOCK_N, num_stages=1):
        position = at + lane
        slot = tl.load(row + position, mask=position < stop, other=0)
        k = tl.load(
            keys + (slot * k_slot + head * k_head)[:, None] + channel[None, :],
            mask=(position < stop)[:, None], other=0.0,
        ).to(q.dtype)  # fmt: skip
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        visible = (position < stop)[None, :] & (position[None, :] <= last[:, None])
        logits = tl.where(visible, logits, -float("inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        anchor = tl.where(higher == -float("inf"), 0.0, higher)
        sums = sums * tl.exp2(top - anchor) + tl.sum(tl.exp2(logits - anchor[:, None]), 1)
        top = higher
    rows = GROUP * WINDOW
    at = (split * tl.num_programs(1) + head) * rows + index
    tl.store(tops + at, top, mask=index < rows)
    tl.store(sums_out + at, sums, mask=index < rows)


@triton.jit(do_not_specialize=["splits"])
def normaliser_kernel(tops, sums, normalisers, splits, rows, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """Log-sum-exp of each row, from its splits in a fixed order."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    split = tl.arange(0, SPLITS)
    used = (split < splits)[:, None] & (row < rows)[None, :]
    top = tl.load(tops + split[:, None] * rows + row[None, :], mask=used, other=-float("inf"))
    total = tl.load(sums + split[:, None] * rows + row[None, :], mask=used, other=0.0)
    highest = tl.max(top, 0)
    anchor = tl.where(highest == -float("inf"), 0.0, highest)
    normaliser = anchor + tl.log2(tl.sum(total * tl.exp2(top - anchor[None, :]), 0))
    tl.store(normalisers + row, normaliser, mask=row < rows)


@triton.jit
def _attention(q, k, normalisers, q_index, window, scale, WINDOW: tl.constexpr, PRECISION: tl.constexpr):
    """Attention ``[BLOCK_N, WINDOW]`` of one query head's window on a block of keys."""
    place = tl.arange(0, WINDOW)
    normaliser = tl.load(normalisers + q_index * WINDOW + place)
    logits = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale
    return tl.where(place[None, :] < window, tl.exp2(logits - normaliser[None, :]), 0.0)


@triton.jit
def _of_fp8(
    k, v, q, g, normalisers, window, scale, factor,
    MEMBERS: tl.constexpr, WINDOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Contributions ``[BLOCK_N]`` of MEMBERS query heads, whose windows and Gram matrices lie side by side.

    So each tile has one product: for a second one Triton would take it through shared memory once more.
    """
    k, v = dealt(k).to(q.dtype), dealt(v).to(q.dtype)
    line = tl.arange(0, MEMBERS * WINDOW)
    logits = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale
    attention = tl.exp2(logits - tl.load(normalisers + line)[None, :])
    attention = tl.where((line % WINDOW < window)[None, :], attention, 0.0)
    # Summed now: the accumulators of the next product need the registers.
    seen = tl.sum((attention * attention).reshape(k.shape[0], MEMBERS, WINDOW), 2)
    form = tl.dot(v, g, input_precision=PRECISION).reshape(k.shape[0], MEMBERS, v.shape[1])
    form = tl.sum(form * v.to(tl.float32)[:, None, :], 2) * factor
    # Rounding can push a vanishing quadratic form below zero; NaN has to stay.
    form = tl.where(form < 0.0, 0.0, form)
    return tl.sum(tl.sqrt(seen) * tl.sqrt(form), 1)


@triton.jit
def _outermost(number, end: tl.constexpr):
    """Sum of the parabola's ``number`` outermost weights on a side: ``2 · end · u - u²``, u from 1 up."""
    return number * (number + 1) * (6 * end - 2 * number - 1) // 6


@triton.jit
def _share(candidate, count, POOLING: tl.constexpr, PARABOLA: tl.constexpr):
    """The share of each candidate that is pooled: less than 1 where windows reach beyond the candidates."""
    left = tl.maximum(POOLING // 2 - candidate, 0)
    right = tl.maximum(POOLING // 2 - (count - 1 - candidate), 0)
    if PARABOLA:
        end: tl.constexpr = POOLING // 2 + 1
        lost = (_outermost(left, end) + _outermost(right, end)).to(tl.float32)
        return 1.0 - lost / (2 * _outermost(end, end) - end * end)
    return 1.0 - (left + right).to(tl.float32) / POOLING


@triton.jit(do_not_specialize=["first_position", "count"], do_not_specialize_on_alignment=["scales"])
def contribution_kernel(
    queries, keys, values, row, scales, gram, gram_scale, normalisers, contributions, totals,
    first_position, count, window, q_place, q_head, k_slot, k_head, v_slot, v_head,
    HEADS: tl.constexpr, GROUP: tl.constexpr, MEMBERS: tl.constexpr, WINDOW: tl.constexpr, DIM: tl.constexpr,
    BLOCK_N: tl.constexpr, POOLING: tl.constexpr, PARABOLA: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Sum over MEMBERS query heads of a KV head, for every candidate: ``[H, GROUP / MEMBERS, count]``."""
    PARTS: tl.constexpr = GROUP // MEMBERS
    head = tl.program_id(1)
    part = tl.program_id(2)
    channel = tl.arange(0, DIM)
    place = tl.arange(0, WINDOW)
    square = channel[:, None] * DIM + channel[None, :]
    factor = tl.load(gram_scale + head // HEADS)
    scale = tl.load(scales + head // HEADS) * LOG2E
    first_q = head * GROUP + part * MEMBERS
    FP8: tl.constexpr = keys.dtype.element_ty == tl.float8e4nv
    if FP8:
        line = tl.arange(0, MEMBERS * WINDOW)
        q_offset = line % WINDOW * q_place + (first_q + line // WINDOW) * q_head
        in_window = (line % WINDOW < window)[:, None]
        q = dealt(tl.load(queries + q_offset[:, None] + channel[None, :], mask=in_window, other=0.0))
        column = tl.arange(0, MEMBERS * DIM)
        g_offset = (first_q + column // DIM) * DIM * DIM + column % DIM
        g = dealt(tl.load(gram + tl.trans(dealt(channel[None, :])) * DIM + g_offset[None, :]))
    else:
        q_block = queries + place[:, None] * q_place + channel[None, :]
        in_window = (place < window)[:, None]
        # MEMBERS is 1 or 2; the second pair of operands is dead code where it is 1.
        q0 = tl.load(q_block + first_q * q_head, mask=in_window, other=0.0)
        g0 = tl.load(gram + first_q * DIM * DIM + square)
        q1 = tl.load(q_block + (first_q + MEMBERS - 1) * q_head, mask=in_window, other=0.0)
        g1 = tl.load(gram + (first_q + MEMBERS - 1) * DIM * DIM + square)
    contributions += (head * PARTS + part).to(tl.int64) * count
    sums = tl.zeros((BLOCK_N,), tl.float32)
    for first in tl.range(
        tl.program_id(0) * BLOCK_N, count, tl.num_programs(0) * BLOCK_N, num_stages=STAGES
    ):  # fmt: skip
        candidate = first + tl.arange(0, BLOCK_N)
        used = candidate < count
        slot = tl.load(row + first_position + candidate, mask=used, other=0)
        k_offset = (slot * k_slot + head * k_head)[:, None] + channel[None, :]
        v_offset = (slot * v_slot + head * v_head)[:, None] + channel[None, :]
        k = tl.load(keys + k_offset, mask=used[:, None], other=0.0)
        v = tl.load(values + v_offset, mask=used[:, None], other=0.0)
        if FP8:
            contribution = _of_fp8(
                k, v, q, g, normalisers + first_q * WINDOW, window, scale, factor, MEMBERS, WINDOW, PRECISION
            )  # fmt: skip
        else:
            k, v = k.to(q0.dtype), v.to(q0.dtype)
            value = v.to(tl.float32)
            attention = _attention(q0, k, normalisers, first_q, window, scale, WINDOW, PRECISION)
            form = tl.sum(tl.dot(v, g0, input_precision=PRECISION) * value, 1) * factor
            form = tl.where(form < 0.0, 0.0, form)
            contribution = tl.sqrt(tl.sum(attention * attention, 1)) * tl.sqrt(form)
            if MEMBERS == 2:
                attention = _attention(q1, k, normalisers, first_q + 1, window, scale, WINDOW, PRECISION)
                form = tl.sum(tl.dot(v, g1, input_precision=PRECISION) * value, 1) * factor
                form = tl.where(form < 0.0, 0.0, form)
                contribution += tl.sqrt(tl.sum(attention * attention, 1)) * tl.sqrt(form)
        tl.store(contributions + candidate, contribution, mask=used)
        sums += tl.where(used, contribution * _share(candidate, count, POOLING, PARABOLA), 0.0)
    tl.store(totals + (head * PARTS + part) * tl.num_programs(0) + tl.program_id(0), tl.sum(sums, 0))


@triton.jit(
    do_not_specialize=["number", "sinks", "count", "length", "out_head"],
    do_not_specialize_on_alignment=["out", "sums"],
)
def pool_kernel(
    contributions, totals, out, sums, number, sinks, count, length, out_head,
    HEADS: tl.constexpr, GROUP: tl.constexpr, PARTS: tl.constexpr, POOLING: tl.constexpr,
    PARABOLA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pooling and the mean over a KV head's query heads, +inf where protected; and the sum of each layer.

    ``number`` of ``totals`` are those of one layer.
    """
    head = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    candidate = place - sinks
    pooled = tl.zeros((BLOCK,), tl.float32)
    for part in range(PARTS):
        of_part = contributions + (head * PARTS + part) * count
        for shift in tl.static_range(POOLING):
            near = candidate + (shift - POOLING // 2)
            away = shift - POOLING // 2
            weight = (POOLING // 2 + 1) * (POOLING // 2 + 1) - away * away if PARABOLA else 1
            pooled += weight * tl.load(of_part + near, mask=(near >= 0) & (near < count), other=0.0)
    end: tl.constexpr = POOLING // 2 + 1
    weights = 2 * _outermost(end, end) - end * end if PARABOLA else POOLING
    score = tl.where((candidate >= 0) & (candidate < count), pooled / (weights * GROUP), float("inf"))
    tl.store(out + head * out_head + place, score, mask=place < length)
    if (tl.program_id(0) == 0) & (head % HEADS == 0):
        layer = head // HEADS
        of_layer = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, number, BLOCK):
            index = first + tl.arange(0, BLOCK)
            of_layer += tl.load(totals + layer * number + index, mask=index < number, other=0.0)
        tl.store(sums + layer, tl.sum(of_layer, 0) / GROUP)
