"""Attention of new tokens over a compressed row and, causally, over themselves."""

from itertools import pairwise

import torch

from laprox_kernels.reference.decode import cell_index
from laprox_kernels.rows import Rows


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
    """Attention output ``[T, Hq, D]`` of all rows' new tokens, in the dtype of the queries.

    Args:
        queries: ``[T, Hq, D]``, the new tokens of each row in turn.
        keys, values: ``[slots, L, H, D]``, the whole pool, contiguous; the new tokens' own cells are
            already in it.
        layer: index of the layer in the pool.
        rows: what came before the new tokens; every new token attends to all of it. May be empty.
        own: int64 ``[T]``, slots of the new tokens, dense.
        cu_new: int64 ``[B + 1]``, offsets of each row's new tokens.
        longest: at least the highest number of new tokens of a row; known to the host.
        scale: factor of the attention logits, above 0.
    """
    q_heads, dim = queries.shape[1:]
    layers, heads = keys.shape[1:3]
    index, used = cell_index(rows, layer, layers, heads)
    cell = layer * heads + torch.arange(heads, device=queries.device)[:, None]
    out = torch.empty_like(queries)
    bounds = cu_new.tolist()
    for row, (first, last) in enumerate(pairwise(bounds)):
        new = last - first
        at = torch.cat([index[row], own[first:last] * (layers * heads) + cell], dim=1)
        k = keys.view(-1, dim)[at].float()
        v = values.view(-1, dim)[at].float()
        q = queries[first:last].float().view(new, heads, q_heads // heads, dim)
        logits = torch.einsum("thgd,hnd->hgtn", q, k) * scale
        causal = torch.ones(new, new, dtype=torch.bool, device=queries.device).tril()
        seen = torch.cat([used[row][:, None].expand(-1, new, -1), causal.expand(heads, -1, -1)], dim=-1)
        weights = logits.masked_fill_(~seen[:, None], float("-inf")).softmax(dim=-1)
        output = torch.einsum("hgtn,hnd->thgd", weights, v)
        out[first:last] = output.reshape(new, q_heads, dim).to(queries.dtype)
    return out
