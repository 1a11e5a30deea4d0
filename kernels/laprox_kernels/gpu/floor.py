"""The best of every row: one program a row finds its threshold digit by digit, as ``select`` does for all."""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl

from laprox_kernels.gpu.select import next_digit, ordered
from laprox_kernels.gpu.support import Unsupported

BLOCK = 4096
WARPS = 8


@triton.jit(do_not_specialize=["length", "wanted"])
def _floor_kernel(scores, length, wanted, BLOCK: tl.constexpr):
    scores += tl.program_id(0).to(tl.int64) * length
    prefix = (wanted * 0).to(tl.int64)
    quota = wanted
    for step in tl.static_range(4):
        counts = tl.zeros((256,), tl.int32)
        for first in range(0, length, BLOCK):
            index = first + tl.arange(0, BLOCK)
            used = index < length
            key = ordered(tl.load(scores + index, mask=used, other=0.0))
            if step > 0:
                used &= (key >> (32 - 8 * step)) == prefix.to(tl.uint32)
            digit = (key >> (24 - 8 * step)) & 255
            counts += tl.histogram(digit.to(tl.int32), 256, mask=used)
        digit_wanted, quota = next_digit(counts, quota)
        prefix = prefix * 256 + digit_wanted
    threshold = prefix.to(tl.uint32)
    ties = wanted * 0
    for first in range(0, length, BLOCK):
        index = first + tl.arange(0, BLOCK)
        used = index < length
        key = ordered(tl.load(scores + index, mask=used, other=0.0))
        equal = (used & (key == threshold)).to(tl.int32)
        rank = ties + tl.cumsum(equal, 0) - equal
        keep = (used & (key > threshold)) | ((equal > 0) & (rank < quota))
        tl.store(scores + index, float("inf"), mask=keep)
        ties += tl.sum(equal, 0)


def floor(scores: torch.Tensor, count: int) -> None:
    """``reference.floor`` on the GPU; no host sync, and the same bits for the same input."""
    layers, heads, length = scores.shape
    if scores.dtype != torch.float32 or not scores.is_contiguous():
        raise Unsupported(
            f"floor: scores {scores.dtype}, contiguous {scores.is_contiguous()} (served: contiguous float32)"
        )
    if not 0 <= count <= length:
        raise Unsupported(f"floor: {count} of {length} scores (served: none to all of them)")
    if count:
        _floor_kernel[(layers * heads,)](scores, length, count, BLOCK=BLOCK, num_warps=WARPS)
