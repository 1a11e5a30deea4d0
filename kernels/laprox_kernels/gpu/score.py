"""Scores of a prompt: log-sum-exp of the window's rows, contributions of the candidates, pooling."""

import torch
import triton

from laprox_kernels.gpu.score_kernels import (
    contribution_kernel,
    normaliser_kernel,
    pool_kernel,
    rows_kernel,
)
from laprox_kernels.gpu.support import (
    MAX_WINDOW,
    SCORE_BYTES,
    Unsupported,
    check,
    check_whole_pool,
    dot_dtype,
    layer_bytes,
    members_of,
    multiprocessors,
    power_of_two,
    precision,
    stages,
)
from laprox_kernels.pooling import weights

ROWS_BLOCK, ROWS_WARPS = 128, 8
BLOCK_N, WARPS, PROGRAMS_PER_SM = 128, 8, 1
POOL_BLOCK = 1024
MAX_SPLITS = 64


def score(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    row: torch.Tensor,
    start: int,
    gram: torch.Tensor,
    scale: torch.Tensor,
    sinks: int,
    pooling: tuple[str, int],
    out: torch.Tensor,
) -> torch.Tensor:
    """``reference.score`` on the GPU; no float atomics, so the same bits for the same input.

    One launch serves as many layers as their intermediate results, of ``score_bytes`` at most, allow: a
    short prompt's time is that of its launches.
    """
    check("score", keys, queries)
    check_whole_pool("score", keys, values)
    layers, window, q_heads, dim = queries.shape
    heads, n = keys.shape[2], row.numel()
    length = n - start
    if not 1 <= window <= min(MAX_WINDOW, n):
        raise Unsupported(f"score: window {window} of {n} positions (served: 1 to {MAX_WINDOW}, within them)")
    weights(*pooling)
    expected = (layers, q_heads, dim, dim)
    if tuple(gram.shape) != expected:
        raise Unsupported(f"score: gram {list(gram.shape)} (served: {list(expected)})")
    if tuple(scale.shape) != (layers,) or scale.dtype != torch.float32 or not scale.is_contiguous():
        raise Unsupported(f"score: scale {list(scale.shape)}, {scale.dtype} (served: float32 {[layers]})")
    if tuple(out.shape) != (layers, heads, length) or not out.is_contiguous():
        raise Unsupported(f"score: out {list(out.shape)} (served: contiguous {[layers, heads, length]})")
    count = max(0, length - window - sinks)
    members = members_of(q_heads, heads)
    parts = q_heads // heads // members
    sums = torch.empty(layers, dtype=torch.float32, device=out.device)
    at_once = max(1, min(layers, SCORE_BYTES // max(1, layer_bytes(q_heads, heads, count))))
    for first in range(0, layers, at_once):
        part = slice(first, first + at_once)
        score_layers(
            queries[part], keys[:, part], values[:, part], row, start + sinks, count, gram[part],
            scale[part], sinks, pooling, out[part], sums[part], members, parts,
        )  # fmt: skip
    return sums


def score_layers(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    row: torch.Tensor,
    first: int,
    count: int,
    gram: torch.Tensor,
    scale: torch.Tensor,
    sinks: int,
    pooling: tuple[str, int],
    out: torch.Tensor,
    sums: torch.Tensor,
    members: int,
    parts: int,
) -> None:
    """Layers in one launch a step; arguments as of ``score``, with these layers only.

    Args:
        first, count: position of the first candidate, and their number.
        sums: what ``score`` returns, of these layers; written whole.
        members: query heads of a program.
        parts: programs of a KV head.
    """
    layers, window, q_heads, dim = queries.shape
    n, heads, length = row.numel(), keys.shape[2], out.shape[2]
    group, all_heads = q_heads // heads, layers * heads
    device, dtype = queries.device, dot_dtype(keys.dtype)
    # [W, L·Hq, D]: as the pool has it, heads of all layers side by side.
    laid_out = torch.empty((window, layers, q_heads, dim), dtype=dtype, device=device)
    queries = laid_out.copy_(queries.transpose(0, 1)).view(window, layers * q_heads, dim)
    padded = max(16, power_of_two(window))
    rows = group * padded
    block_m = min(128, power_of_two(rows))
    m_blocks = triton.cdiv(rows, block_m)
    programs = 2 * multiprocessors(device) // (all_heads * m_blocks)
    splits = max(1, min(MAX_SPLITS, triton.cdiv(n, ROWS_BLOCK), programs))
    stretch = triton.cdiv(triton.cdiv(n, splits), ROWS_BLOCK)  # in blocks
    splits = triton.cdiv(n, stretch * ROWS_BLOCK)

    programs = max(1, PROGRAMS_PER_SM * multiprocessors(device) // (all_heads * parts))
    blocks = min(triton.cdiv(count, BLOCK_N), programs)
    partials = torch.empty((2, splits, all_heads * rows), dtype=torch.float32, device=device)
    normalisers = torch.empty(all_heads * rows, dtype=torch.float32, device=device)
    contributions = torch.empty((all_heads, parts, count), dtype=torch.float32, device=device)
    totals = torch.empty((all_heads, parts, blocks), dtype=torch.float32, device=device)
    # float16 does not hold what a Gram matrix may: those of a layer are scaled to one, and its forms back.
    if dtype == torch.float16:
        # Nothing of float32 in between: what scoring holds is counted before the pool takes the rest.
        gram_scale = torch.linalg.vector_norm(gram.flatten(1), float("inf"), dim=1).clamp_min_(1e-30)
        scaled = torch.empty(gram.shape, dtype=dtype, device=device)
        gram = torch.div(gram, gram_scale.view(-1, 1, 1, 1), out=scaled)
    else:
        gram_scale = torch.ones(layers, dtype=torch.float32, device=device)
        gram = gram.to(dtype).contiguous()
    strides = keys.stride(0), keys.stride(2)
    kind, width = pooling
    pooled = {"POOLING": width, "PARABOLA": kind == "parabola"}
    if count:
        sizes = {"GROUP": group, "WINDOW": padded, "DIM": dim, "PRECISION": precision(dtype)}
        sizes["STAGES"] = stages(keys.dtype)
        rows_kernel[(splits, all_heads, m_blocks)](
            queries, keys, row, scale, partials[0], partials[1], n, window, stretch,
            *queries.stride()[:2], *strides, HEADS=heads,
            BLOCK_M=block_m, BLOCK_N=ROWS_BLOCK, num_warps=ROWS_WARPS, **sizes,
        )  # fmt: skip
        normaliser_kernel[(triton.cdiv(all_heads * rows, 64),)](
            partials[0], partials[1], normalisers, splits, all_heads * rows,
            SPLITS=MAX_SPLITS, BLOCK=64,
        )  # fmt: skip
        contribution_kernel[(blocks, all_heads, parts)](
            queries, keys, values, row, scale, gram, gram_scale, normalisers, contributions, totals,
            first, count, window, *queries.stride()[:2], *strides, *strides,
            HEADS=heads, MEMBERS=members, BLOCK_N=BLOCK_N, num_warps=WARPS, **pooled, **sizes,
        )  # fmt: skip
    pool_kernel[(triton.cdiv(length, POOL_BLOCK), all_heads)](
        contributions, totals, out, sums, totals.numel() // layers, sinks, count, length, out.stride(1),
        HEADS=heads, GROUP=group, PARTS=parts, BLOCK=POOL_BLOCK, **pooled,
    )  # fmt: skip
