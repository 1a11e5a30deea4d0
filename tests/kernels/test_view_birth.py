"""A view is made while the prefill it comes from is still running."""

import torch
from kernel_cases import DEVICE, GPU

from laprox_sglang.ranks import ONE_RANK
from laprox_sglang.views import told
from laprox_sglang.views.plan import Plan
from laprox_sglang.views.view import SPAN, View


def test_nothing_waits_for_the_device(seed):
    cu_cells = torch.tensor([0, 3, 3, 8, 20], device=DEVICE)
    positions = torch.arange(20, dtype=torch.int32, device=DEVICE)
    kept = torch.tensor([7, 9, 82, 90, 300, 383], device=DEVICE)
    if GPU:
        torch.cuda.set_sync_debug_mode("error")
    try:
        counts = told.counts(kept, cu_cells, 2, 83, ONE_RANK)
        at = told.positions(positions, cu_cells, 2, ONE_RANK)
        view = View.of(Plan(7, 90, 5, 0, 1, None), torch.arange(5), 2, cu_cells, counts, at)
    finally:
        if GPU:
            torch.cuda.set_sync_debug_mode("default")
    assert view.table.tolist() == [7, 5, 90, 0, 3, 3, 8, 20] and view.table.numel() == SPAN + 5
    # 90 is position 7 of another head, and 383 is position 51.
    assert view.host_counts.tolist() == [*cu_cells.tolist(), 4]
    assert view.positions.tolist() == list(range(20))
