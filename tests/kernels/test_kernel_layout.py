"""Layout of a decode batch against lists made by hand."""

import pytest
import torch
from kernel_cases import DEVICE, GPU, randint

import laprox_kernels
from laprox_kernels import Rows, reference
from laprox_kernels.gpu.layout import layout

VERSIONS = {"triton": layout, "reference": reference.layout, "dispatch": laprox_kernels.layout}
# (start, m, end, logical length): no segment, at the front, behind a prefix, with and without a tail.
SPECS = [
    [(0, 0, 0, 1)],
    [(0, 0, 0, 77), (0, 5, 60, 61), (20, 3, 50, 50)],
    [(7, 40, 47 + 900, 3000), (0, 1, 2, 3), (0, 0, 0, 2500), (1024, 1024, 4000, 4001)],
]


def empty_rows(batch, columns):
    return Rows(
        slots=torch.full((batch, columns), -7, dtype=torch.int32, device=DEVICE),
        dense=torch.full((batch,), -7, device=DEVICE),
        segment_start=torch.full((batch, 1), -7, device=DEVICE),
        cu_cells=torch.zeros((batch, 1, 5), dtype=torch.int64, device=DEVICE),
    )


@pytest.mark.parametrize("specs", SPECS, ids=["one", "three", "long"])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("integers", [torch.int32, torch.int64])
def test_slots_in_the_order_that_decode_reads(version, integers, specs, seed):
    batch, columns = len(specs), max(length for *_, length in specs) + randint(0, 9)
    table = torch.randint(1, 2**31 - 1, (batch + 3, columns), dtype=torch.int32, device=DEVICE)
    table_rows = torch.randperm(batch + 3, device=DEVICE)[:batch].to(integers)
    lengths = torch.tensor([length for *_, length in specs], device=DEVICE, dtype=integers)
    # As the server has them: the spans stand at the front of a wider table.
    spans = torch.zeros((batch, 9), dtype=torch.int64, device=DEVICE)
    spans[:, :3] = torch.tensor([spec[:3] for spec in specs])
    rows = empty_rows(batch, columns)
    VERSIONS[version](table, table_rows, lengths, spans[:, :3], rows)
    for row, (start, packed, end, length) in enumerate(specs):
        line = table[int(table_rows[row])]
        by_hand = torch.cat([line[:start], line[end:length], line[start : start + packed]])
        assert torch.equal(rows.slots[row, : len(by_hand)], by_hand)
        assert int(rows.dense[row]) == int(rows.segment_start[row, 0]) == start + length - end


if GPU:

    def test_pays_no_host_sync(seed):
        table = torch.randint(1, 99, (4, 64), dtype=torch.int32, device=DEVICE)
        given = table, torch.arange(3, device=DEVICE), torch.full((3,), 60, device=DEVICE)
        spans, rows = torch.zeros((3, 3), dtype=torch.int64, device=DEVICE), empty_rows(3, 64)
        layout(*given, spans, rows)
        torch.cuda.set_sync_debug_mode("error")
        try:
            layout(*given, spans, rows)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(rows.slots[:, :60], table[:3, :60])
