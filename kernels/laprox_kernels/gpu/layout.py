"""Layout of a decode batch: copies the slots of every row out of a table that others write."""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl

from laprox_kernels.rows import Rows

BLOCK = 1024
PROGRAMS_PER_ROW = 8


@triton.jit(
    do_not_specialize=["table_row", "spans_row", "slots_row", "start_row"],
    do_not_specialize_on_alignment=["table_rows", "lengths"],
)
def _layout_kernel(
    table, table_rows, lengths, spans, slots, dense, segment_start,
    table_row, spans_row, slots_row, start_row,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    source = table + tl.load(table_rows + row).to(tl.int64) * table_row
    start = tl.load(spans + row * spans_row)
    packed = tl.load(spans + row * spans_row + 1)
    end = tl.load(spans + row * spans_row + 2)
    count = tl.load(lengths + row).to(tl.int64) - (end - start)
    # Lengths are read on the device: a captured graph has the same grid in every step.
    for first in range(tl.program_id(1) * BLOCK, count + packed, tl.num_programs(1) * BLOCK):
        column = first + tl.arange(0, BLOCK).to(tl.int64)
        after = tl.where(column < count, column - start + end, column - count + start)
        logical = tl.where(column < start, column, after)
        used = column < count + packed
        slot = tl.load(source + logical, mask=used, other=0)
        tl.store(slots + row * slots_row + column, slot, mask=used)
    if tl.program_id(1) == 0:
        tl.store(dense + row, count)
        tl.store(segment_start + row * start_row, count)


def layout(
    table: torch.Tensor, table_rows: torch.Tensor, lengths: torch.Tensor, spans: torch.Tensor, rows: Rows
) -> None:
    """``reference.layout`` on the GPU; leaves what lies behind a row's slots as it is."""
    _layout_kernel[(len(table_rows), PROGRAMS_PER_ROW)](
        table, table_rows, lengths, spans, rows.slots, rows.dense, rows.segment_start,
        table.stride(0), spans.stride(0), rows.slots.stride(0), rows.segment_start.stride(0),
        BLOCK=BLOCK,
    )  # fmt: skip
