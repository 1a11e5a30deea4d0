"""A segment is made while the prefill it comes from is still running."""

import torch
from kernel_cases import DEVICE, GPU

from laprox_sglang.plan import Plan
from laprox_sglang.segment import SPAN, Segment


def test_nothing_waits_for_the_device(seed):
    cu_cells = torch.tensor([0, 3, 3, 8, 20], device=DEVICE)
    positions = torch.arange(20, dtype=torch.int32, device=DEVICE)
    if GPU:
        torch.cuda.set_sync_debug_mode("error")
    try:
        segment = Segment.of(Plan(7, 90, 5, 0, None), 2, cu_cells, positions)
    finally:
        if GPU:
            torch.cuda.set_sync_debug_mode("default")
    assert segment.table.tolist() == [7, 5, 90, 0, 3, 3, 8, 20] and segment.table.numel() == SPAN + 5
    assert segment.host_cu_cells.tolist() == cu_cells.tolist()
    assert segment.positions.tolist() == list(range(20))
