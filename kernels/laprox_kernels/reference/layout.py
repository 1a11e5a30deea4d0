"""Where each row of a decode batch finds its KV, from the table of the slots of its logical columns."""

import torch

from laprox_kernels.rows import Rows


def layout(
    table: torch.Tensor, table_rows: torch.Tensor, lengths: torch.Tensor, spans: torch.Tensor, rows: Rows
) -> None:
    """Fills ``rows`` but for its ``cu_cells``, for rows of at most one segment.

    Args:
        table: int32 ``[R, N]``, slot of each logical column of a row.
        table_rows: integers ``[B]``, the batch's rows of ``table``.
        lengths: integers ``[B]``, logical lengths, the new token included.
        spans: int64 ``[B, 3]``, (start, m, end): columns [start, start + m) hold the slots of a segment that
            stands for columns [start, end); zeros where a row has none.
        rows: written; its ``slots`` have room for every row.
    """
    start, packed, end = (part[:, None] for part in spans.unbind(1))
    dense = lengths.long()[:, None] - (end - start)
    column = torch.arange(rows.slots.shape[1], device=table.device)[None]
    # Dense columns first: those before the segment, those after it; then the packed slots.
    logical = torch.where(
        column < start,
        column,
        torch.where(column < dense, column - start + end, column - dense + start),
    )
    used = column < dense + packed
    rows.slots.copy_(table[table_rows[:, None], logical.masked_fill(~used, 0)].masked_fill(~used, 0))
    rows.dense.copy_(dense[:, 0])
    rows.segment_start.copy_(dense)
