"""Contribution of every cell of a prompt to the output of its layer (LaProx, Algorithm 1)."""

import torch

from laprox_kernels.pooling import pool


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
    """Scores of the cells of one request behind column ``start``, comparable within each layer.

    Per query head, ``‖A[:, i]‖₂ · ‖v_i W_O‖₂`` with A the attention of the last W queries over the
    whole causal context; the mean over a KV head's query heads; pooled over the candidates. Divided by
    its layer's sum, a score is comparable over the whole model. Protected cells (the last W positions and
    the first ``sinks``) get +inf, so that a top-K keeps them.

    Args:
        queries: ``[L, W, Hq, D]``, the last W queries of every layer after RoPE.
        keys, values: ``[slots, L, H, D]``, the whole pool, contiguous.
        row: int64 ``[n]``, slot of every position of the request.
        start: first position s that is scored; P = n - s.
        gram: float32 ``[L, Hq, D, D]``, ``W_O W_Oᵀ`` of each query head.
        scale: float32 ``[L]``, factor of the attention logits, that of the pool's keys among it. A factor of
            a layer's values is one of its scores and of their sum: it decides nothing, and is left out.
        sinks: number of positions protected from ``start`` on.
        pooling: kind and width, as of ``pooling.weights``; beyond the candidates there is nothing, which
            counts as 0.
        out: float32 ``[L, H, P]``, contiguous, written whole.

    Returns:
        Sum of the scores of each layer's candidates: float32 ``[L]``, 0 where there are none.
    """
    return torch.stack(
        [
            score_layer(
                queries[layer], keys[:, layer], values[:, layer], row, start, gram[layer], scale[layer],
                sinks, pooling, out[layer],
            )
            for layer in range(len(queries))
        ]
    )  # fmt: skip


def score_layer(
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
    """``score`` of one layer: every argument, and what it returns, without its L."""
    window, q_heads, dim = queries.shape
    heads = keys.shape[1]
    n = row.numel()
    group = q_heads // heads
    k = keys[row].float()
    v = values[row[start:]].float()
    q = queries.float().view(window, heads, group, dim)

    logits = torch.einsum("whgd,nhd->hgwn", q, k) * scale
    position = torch.arange(n, device=row.device)
    future = position > position[n - window :, None]
    attention = logits.masked_fill_(future, float("-inf")).softmax(dim=-1)[..., start:]

    projected = torch.einsum("phd,hgde,phe->hgp", v, gram.float().view(heads, group, dim, dim), v)
    # Rounding can push a vanishing quadratic form below zero.
    contribution = (attention.norm(dim=2) * projected.clamp_min_(0).sqrt_()).mean(dim=1)
    candidates = contribution[:, sinks : n - start - window]
    pooled = pool(candidates, *pooling)
    out.fill_(float("inf"))
    out[:, sinks : n - start - window] = pooled
    return pooled.sum()
