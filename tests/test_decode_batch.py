"""A decode batch without a server around it."""

import pytest
import torch

import laprox_kernels as kernels
from laprox_sglang.attention.decode_batch import DecodeBatch
from laprox_sglang.views.plan import Plan
from laprox_sglang.views.view import View

LAYERS, HEADS, DIM = 2, 2, 4
CELLS = LAYERS * HEADS


def test_a_row_has_one_segment(seed):
    """One view and one tail: ``layout``, the tables and the graphs' buffers all take it as given."""
    table = torch.arange(1, 5 * 30 + 1).view(5, 30).int()
    offsets = torch.tensor([0, 1, 5, 6, 2 * CELLS])
    view = View.of(Plan(3, 20, 2, 0, 1, None), torch.tensor([1, 2]), LAYERS, offsets, torch.zeros(CELLS + 2))
    batch = DecodeBatch(table, LAYERS, HEADS)
    batch.allocate(5)
    for views in ([view], [None, view, view], [view] * 5):
        number = len(views)
        for prepare in (batch.prepare, batch.prepare_graph):
            batch.take_step(views, [26] * number)
            prepare(torch.arange(number), torch.full((number,), 26))
            rows = batch.rows
            assert rows is not None
            assert rows.segment_start.shape == (number, 1)
            assert rows.cu_cells.shape == (number, 1, CELLS + 1)
            # Together with the dense slots it is all that a row reads.
            segments = rows.cu_cells[:, 0, -1] // CELLS
            assert (rows.dense + segments).tolist() == [26 - (view.spared if view else 0) for view in views]


@pytest.mark.parametrize("rows", [1, 5])
def test_what_a_gpu_compiles_at_the_start_runs_and_leaves_nothing_behind(rows, seed):
    torch.manual_seed(seed)
    keys, values = torch.randn((2, 99, LAYERS, HEADS, DIM))
    queries = torch.randn((rows, 2 * HEADS, DIM))
    # A view of 2 slots for columns [3, 20), and a tail; every row has it.
    table = torch.stack([torch.randperm(98)[:30] + 1 for _ in range(rows)]).int()
    cu_cells = torch.tensor([0, 1, 5, 6, 2 * CELLS])
    views: list[View | None] = [
        View.of(Plan(3, 20, 2, 0, 1, None), torch.tensor([1, 2]), LAYERS, cu_cells, torch.zeros(CELLS + 2))
    ] * rows
    lengths = torch.full((rows,), 26)
    outputs = []
    for compiled in (False, True):
        batch = DecodeBatch(table, LAYERS, HEADS)
        if compiled:
            batch.compile(queries[:1], keys, values)
            assert not batch.compressed and batch.rows is None and batch.plan is None
        batch.take_step(views, lengths.tolist())
        batch.prepare(torch.arange(rows), lengths)
        assert batch.rows is not None
        assert batch.rows.lengths(1, HEADS)[0].tolist() == [9 + 1, 9 + 2]
        outputs.append(kernels.decode(queries, keys, values, 1, batch.rows, 0.5, batch.plan))
    assert torch.equal(*outputs)
