"""Exact top-K: four 8-bit digits of an order-preserving key by histogram, then a stable compaction.

Each group of scores has programs, histograms and tallies of its own. Counting uses integer atomics only:
whatever their order, the result is the same.
"""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl

from laprox_kernels.gpu.support import Unsupported, multiprocessors, power_of_two

BLOCK = 4096
COMPACTION_BLOCK = 2048
MAX_COMPACTION_PROGRAMS = 2048
WARPS = 8


@triton.jit
def ordered(score):
    """Unsigned key in the order of the scores: NaN as -inf, -0 as +0, subnormals exactly."""
    bits = score.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    bits = tl.where(magnitude == 0, 0, bits)
    bits = tl.where(magnitude > 0x7F800000, -0x800000, bits)
    bits = tl.where(bits < 0, ~bits, bits ^ -0x80000000)
    return bits.to(tl.uint32, bitcast=True)


@triton.jit
def next_digit(count, quota):
    """The digit of the K-th largest key, of how many keys have each, and what is left of the quota K."""
    digits = tl.arange(0, 256)
    above = tl.sum(count, 0) - tl.cumsum(count, 0)
    here = (above < quota) & (above + count >= quota)
    return tl.sum(tl.where(here, digits, 0), 0), quota - tl.sum(tl.where(here, above, 0), 0)


@triton.jit
def _descend(histograms, k, PASSES: tl.constexpr):
    """Leading digits of the K-th largest key, and how many keys that share them are still to be kept."""
    digits = tl.arange(0, 256)
    prefix = (k * 0).to(tl.int64)
    quota = k
    for step in tl.static_range(PASSES):
        digit, quota = next_digit(tl.load(histograms + step * 256 + digits), quota)
        prefix = prefix * 256 + digit
    return prefix.to(tl.uint32), quota


@triton.jit
def _histogram_kernel(scores, histograms, number, wanted, STEP: tl.constexpr, BLOCK: tl.constexpr):
    group = tl.program_id(1).to(tl.int64)
    scores += group * number
    histograms += group * 1024
    k = tl.load(wanted)
    prefix, _quota = _descend(histograms, k, STEP)
    counts = tl.zeros((256,), tl.int32)
    for first in range(tl.program_id(0) * BLOCK, number, tl.num_programs(0) * BLOCK):
        index = first + tl.arange(0, BLOCK)
        key = ordered(tl.load(scores + index, mask=index < number, other=0.0))
        used = index < number
        if STEP > 0:
            used &= (key >> (32 - 8 * STEP)) == prefix
        digit = (key >> (24 - 8 * STEP)) & 255
        counts += tl.histogram(digit.to(tl.int32), 256, mask=used)
    tl.atomic_add(histograms + STEP * 256 + tl.arange(0, 256), counts, mask=counts > 0, sem="relaxed")


@triton.jit(do_not_specialize=["stretch"])
def _count_kernel(scores, histograms, tallies, number, wanted, stretch, BLOCK: tl.constexpr):
    group = tl.program_id(1).to(tl.int64)
    scores += group * number
    histograms += group * 1024
    tallies += group * 2 * tl.num_programs(0)
    threshold, _quota = _descend(histograms, tl.load(wanted), 4)
    first = tl.program_id(0) * stretch * BLOCK
    greater = tl.zeros((BLOCK,), tl.int32)
    equal = tl.zeros((BLOCK,), tl.int32)
    for at in range(first, first + stretch * BLOCK, BLOCK):
        index = at + tl.arange(0, BLOCK)
        used = index < number
        key = ordered(tl.load(scores + index, mask=used, other=0.0))
        greater += (used & (key > threshold)).to(tl.int32)
        equal += (used & (key == threshold)).to(tl.int32)
    tl.store(tallies + tl.program_id(0), tl.sum(greater, 0))
    tl.store(tallies + tl.num_programs(0) + tl.program_id(0), tl.sum(equal, 0))


@triton.jit(do_not_specialize=["stretch", "length", "cells"])
def _compact_kernel(
    scores, histograms, tallies, kept, cu_cells, number, wanted, stretch, length, cells,
    PROGRAMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    k = tl.load(wanted)
    group = tl.program_id(1).to(tl.int64)
    start = group * number
    scores += start
    histograms += group * 1024
    tallies += group * 2 * PROGRAMS
    kept += group * k
    cu_cells += start // length
    threshold, quota = _descend(histograms, k, 4)
    program = tl.program_id(0)
    other = tl.arange(0, PROGRAMS)
    before = other < program
    ties = tl.sum(tl.load(tallies + PROGRAMS + other, mask=before, other=0), 0)
    place = tl.sum(tl.load(tallies + other, mask=before, other=0), 0) + tl.minimum(ties, quota)
    first = program * stretch * BLOCK
    for at in range(first, tl.minimum(first + stretch * BLOCK, number), BLOCK):
        index = at + tl.arange(0, BLOCK)
        used = index < number
        key = ordered(tl.load(scores + index, mask=used, other=0.0))
        equal = (used & (key == threshold)).to(tl.int32)
        rank = ties + tl.cumsum(equal, 0) - equal
        keep = (used & (key > threshold)) | ((equal > 0) & (rank < quota))
        one = keep.to(tl.int32)
        target = place + tl.cumsum(one, 0) - one
        tl.store(kept + target, start + index, mask=keep)
        tl.store(cu_cells + index // length, group * k + target, mask=used & (index % length == 0))
        ties += tl.sum(equal, 0)
        place += tl.sum(one, 0)
    if program == 0:
        # The end of this group's last head. It is also where the next group's first head begins: both
        # groups write the same number there.
        tl.store(cu_cells + cells, (group + 1) * k)


def programs_of(number: int) -> int:
    return min(power_of_two(triton.cdiv(number, COMPACTION_BLOCK)), MAX_COMPACTION_PROGRAMS)


def variant(number: int) -> tuple[int, bool]:
    """What the kernels are compiled for anew, of the number of scores."""
    return programs_of(number), number % 16 == 0


def select(scores: torch.Tensor, k: int, groups: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """``reference.select`` on the GPU; no host sync, and the same bits for the same input."""
    layers, heads, length = scores.shape
    if scores.dtype != torch.float32 or not scores.is_contiguous():
        raise Unsupported(
            f"select: scores {scores.dtype}, contiguous {scores.is_contiguous()} (served: contiguous float32)"
        )
    if groups < 1 or layers * heads % groups:
        raise Unsupported(f"select: {groups} groups of {layers * heads} heads (served: groups of equal size)")
    cells = layers * heads // groups
    number = cells * length
    if not 1 <= k <= number < 2**31 - MAX_COMPACTION_PROGRAMS * COMPACTION_BLOCK:
        raise Unsupported(f"select: k = {k} of {number} scores (served: 1 <= k <= scores < 2^31)")
    device = scores.device
    blocks = triton.cdiv(number, COMPACTION_BLOCK)
    programs = programs_of(number)
    stretch = triton.cdiv(blocks, programs)
    # k is written behind the histograms instead of being an argument: Triton would compile anew for a k of 1
    # and for multiples of 16.
    histograms = torch.zeros(groups * 4 * 256 + 1, dtype=torch.int32, device=device)
    wanted = histograms[-1:]
    wanted.fill_(k)
    tallies = torch.empty(groups * 2 * programs, dtype=torch.int32, device=device)
    kept = torch.empty(groups * k, dtype=torch.int64, device=device)
    cu_cells = torch.empty(layers * heads + 1, dtype=torch.int64, device=device)
    readers = min(triton.cdiv(number, BLOCK), triton.cdiv(4 * multiprocessors(device), groups))
    for step in range(4):
        _histogram_kernel[(readers, groups)](
            scores, histograms, number, wanted, STEP=step, BLOCK=BLOCK, num_warps=WARPS
        )  # fmt: skip
    _count_kernel[(programs, groups)](
        scores, histograms, tallies, number, wanted, stretch, BLOCK=COMPACTION_BLOCK, num_warps=WARPS
    )  # fmt: skip
    _compact_kernel[(programs, groups)](
        scores, histograms, tallies, kept, cu_cells, number, wanted, stretch, length, cells,
        PROGRAMS=programs, BLOCK=COMPACTION_BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return kept, cu_cells
