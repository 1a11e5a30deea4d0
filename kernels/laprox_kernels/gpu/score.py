"""Scores of one layer: log-sum-exp of the window's rows, contributions of the candidates, pooling."""

import torch
import triton

from laprox_kernels.gpu.score_kernels import (
    contribution_kernel,
    joint_kernel,
    normaliser_kernel,
    pool_kernel,
    rows_kernel,
)
from laprox_kernels.gpu.support import (
    MAX_WINDOW,
    Unsupported,
    check,
    last_contiguous,
    multiprocessors,
    power_of_two,
    precision,
)
from laprox_kernels.reference.score import Form

ROWS_BLOCK, ROWS_WARPS, ROWS_STAGES = 128, 8, 3
BLOCK_N, WARPS, STAGES, PROGRAMS_PER_SM = 128, 8, 3, 1
MEMBERS = 2  # query heads of a program: 1 or 2
POOL_BLOCK = 1024
MAX_SPLITS = 64
LOG2E = 1.4426950408889634


def score(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    row: torch.Tensor,
    start: int,
    gram: torch.Tensor,
    scale: float,
    sinks: int,
    pooling: int,
    out: torch.Tensor,
    form: Form = "mean",
) -> None:
    """``reference.score`` on the GPU; no float atomics, so the same bits for the same input."""
    check("score", keys, queries)
    check("score", values, queries)
    window, q_heads, dim = queries.shape
    heads, n = keys.shape[1], row.numel()
    group, length = q_heads // heads, n - start
    if not 1 <= window <= min(MAX_WINDOW, n):
        raise Unsupported(f"score: window {window} of {n} positions (served: 1 to {MAX_WINDOW}, within them)")
    if pooling % 2 == 0 or form not in ("mean", "sum", "joint"):
        raise Unsupported(f"score: pooling {pooling}, form {form!r} (served: odd; mean, sum, joint)")
    expected = (q_heads, group, dim, dim) if form == "joint" else (q_heads, dim, dim)
    if tuple(gram.shape) != expected:
        raise Unsupported(f"score: gram {list(gram.shape)} (served: {list(expected)} for the form {form!r})")
    device, dtype = queries.device, keys.dtype
    queries = last_contiguous(queries)
    padded = max(16, power_of_two(window))
    rows = group * padded
    block_m = min(128, power_of_two(rows))
    m_blocks = triton.cdiv(rows, block_m)
    programs = 2 * multiprocessors(device) // (heads * m_blocks)
    splits = max(1, min(MAX_SPLITS, triton.cdiv(n, ROWS_BLOCK), programs))
    stretch = triton.cdiv(triton.cdiv(n, splits), ROWS_BLOCK)  # in blocks
    splits = triton.cdiv(n, stretch * ROWS_BLOCK)

    count = max(0, length - window - sinks)
    members = MEMBERS if group % MEMBERS == 0 else 1
    parts = 1 if form == "joint" else group // members
    blocks = triton.cdiv(count, BLOCK_N)
    if form != "joint":
        blocks = min(blocks, max(1, PROGRAMS_PER_SM * multiprocessors(device) // (heads * parts)))
    partials = torch.empty((2, splits, heads * rows), dtype=torch.float32, device=device)
    normalisers = torch.empty(heads * rows, dtype=torch.float32, device=device)
    contributions = torch.empty((heads, parts, count), dtype=torch.float32, device=device)
    totals = torch.empty((heads, parts, blocks), dtype=torch.float32, device=device)
    # float16 does not hold what a Gram matrix may: it is scaled to one, and its forms back.
    if dtype == torch.float16:
        gram_scale = gram.abs().amax().clamp_min(1e-30)
        gram = (gram / gram_scale).to(dtype).contiguous()
    else:
        gram_scale = torch.ones((), dtype=torch.float32, device=device)
        gram = gram.to(dtype).contiguous()
    if count:
        sizes = {"GROUP": group, "WINDOW": padded, "DIM": dim, "PRECISION": precision(dtype)}
        rows_kernel[(splits, heads, m_blocks)](
            queries, keys, row, partials[0], partials[1], n, window, stretch,
            *queries.stride()[:2], *keys.stride()[:2], scale * LOG2E,
            BLOCK_M=block_m, BLOCK_N=ROWS_BLOCK, STAGES=ROWS_STAGES, num_warps=ROWS_WARPS, **sizes,
        )  # fmt: skip
        normaliser_kernel[(triton.cdiv(heads * rows, 64),)](
            partials[0], partials[1], normalisers, splits, heads * rows,
            SPLITS=MAX_SPLITS, BLOCK=64,
        )  # fmt: skip
        given = (
            queries, keys, values, row, gram, gram_scale, normalisers, contributions, totals,
            start + sinks, count, window,
            *queries.stride()[:2], *keys.stride()[:2], *values.stride()[:2], scale * LOG2E,
        )  # fmt: skip
        sizes.update(BLOCK_N=BLOCK_N, POOLING=pooling, num_warps=WARPS)
        if form == "joint":
            joint_kernel[(blocks, heads)](*given, **sizes)
        else:
            contribution_kernel[(blocks, heads, parts)](*given, MEMBERS=members, STAGES=STAGES, **sizes)
    pool_kernel[(triton.cdiv(length, POOL_BLOCK), heads)](
        contributions, totals, out, totals.numel(), sinks, count, length, out.stride(0),
        PARTS=parts, POOLING=pooling, BLOCK=POOL_BLOCK,
    )  # fmt: skip
