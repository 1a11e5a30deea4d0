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
def _floor_kernel(
    scores, cu_cells, out, length, wanted,
    RAGGED: tl.constexpr, IN_PLACE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    if RAGGED:
        start = tl.load(cu_cells + tl.program_id(0))
        length = (tl.load(cu_cells + tl.program_id(0) + 1) - start).to(tl.int32)
        wanted = tl.minimum(wanted, length)
    else:
        start = tl.program_id(0).to(tl.int64) * length
    scores += start
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
        score = tl.load(scores + index, mask=used, other=0.0)
        key = ordered(score)
        equal = (used & (key == threshold)).to(tl.int32)
        rank = ties + tl.cumsum(equal, 0) - equal
        keep = (used & (key > threshold)) | ((equal > 0) & (rank < quota))
        if IN_PLACE:
            tl.store(scores + index, float("inf"), mask=keep)
        else:
            tl.store(out + start + index, tl.where(keep, float("inf"), score), mask=used)
        ties += tl.sum(equal, 0)


def floor(
    scores: torch.Tensor, count: int, cu_cells: torch.Tensor | None = None, out: torch.Tensor | None = None
) -> None:
    """``reference.floor`` on the GPU; no host sync, and the same bits for the same input."""
    for name, tensor in (("scores", scores), ("out", scores if out is None else out)):
        if tensor.dtype != torch.float32 or not tensor.is_contiguous() or tensor.shape != scores.shape:
            raise Unsupported(
                f"floor: {name} {list(tensor.shape)}, {tensor.dtype}, contiguous {tensor.is_contiguous()} "
                "(served: contiguous float32, of one shape)"
            )
    length = scores.shape[-1]
    if not 0 <= count <= length:
        raise Unsupported(f"floor: {count} of {length} scores (served: none to all of them)")
    if count == 0:
        if out is not None:
            out.copy_(scores)
        return
    rows = scores.numel() // length if cu_cells is None else cu_cells.numel() - 1
    _floor_kernel[(rows,)](
        scores, cu_cells, out, length, count,
        RAGGED=cu_cells is not None, IN_PLACE=out is None, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
