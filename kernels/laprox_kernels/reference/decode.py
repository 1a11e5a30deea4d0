"""Attention of one new token per row over dense slots and packed segments of ragged length."""

import torch

from laprox_kernels.rows import Rows


def cell_index(rows: Rows, layer: int, layers: int, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat cells of the pool that each row reads in each KV head of a layer.

    Returns:
        index: int64 ``[B, heads, N]`` into the pool seen as ``[slots·L·H, D]``, 0 where unused.
        used: bool ``[B, heads, N]``.
    """
    cells = layers * heads
    lengths = rows.lengths(layer, heads)
    column = torch.arange(int(lengths.max()), device=lengths.device)
    batch = torch.arange(lengths.shape[0], device=lengths.device)[:, None, None]
    cell = layer * heads + torch.arange(heads, device=lengths.device)[None, :, None]

    def slot(index: torch.Tensor) -> torch.Tensor:
        return rows.slots[batch, index.clamp(0, rows.slots.shape[1] - 1)].long()

    used = column < lengths[..., None]
    index = slot(column.expand(used.shape)) * cells + cell
    begin = rows.dense[:, None, None].expand(-1, heads, 1)
    for segment in range(rows.cu_cells.shape[1]):
        cu = rows.cu_cells[:, segment, layer * heads : (layer + 1) * heads + 1]
        packed = cu[:, :-1, None] + column - begin
        end = begin + cu.diff(dim=-1)[..., None]
        at = slot(rows.segment_start[:, segment, None, None] + packed // cells) * cells + packed % cells
        index = torch.where((begin <= column) & (column < end), at, index)
        begin = end
    return index.masked_fill(~used, 0), used


def decode(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layer: int,
    rows: Rows,
    scale: float,
    value_scale: float = 1.0,
) -> torch.Tensor:
    """Attention output ``[B, Hq, D]`` of one token per row, in the dtype of the queries.

    Args:
        queries: ``[B, Hq, D]``.
        keys, values: ``[slots, L, H, D]``, the whole pool, contiguous; the new token's own cell is
            already in it and named by ``rows``.
        layer: index of the layer in the pool.
        rows: what each row attends to; every (row, head) has at least one key.
        scale: factor of the attention logits, that of the pool's keys among it.
        value_scale: factor of the pool's values.
    """
    batch, q_heads, dim = queries.shape
    layers, heads = keys.shape[1:3]
    index, used = cell_index(rows, layer, layers, heads)
    k = keys.view(-1, dim)[index].float()
    # Slot 0, which unused places name, is where padding is written to: a weight of 0 makes no number of NaN.
    v = values.view(-1, dim)[index].float().masked_fill_(~used[..., None], 0)
    q = queries.float().view(batch, heads, q_heads // heads, dim)
    logits = torch.einsum("bhgd,bhnd->bhgn", q, k) * scale
    weights = logits.masked_fill_(~used[:, :, None], float("-inf")).softmax(dim=-1)
    out = torch.einsum("bhgn,bhnd->bhgd", weights, v) * value_scale
    return out.reshape(batch, q_heads, dim).to(queries.dtype)
