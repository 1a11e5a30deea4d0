"""Exact selection: the same cells as a sort, whatever the scores."""

import pytest
import torch
from kernel_cases import DEVICE, GPU, KINDS, fill, randint, select_oracle

from laprox_kernels import reference
from laprox_kernels.gpu.select import select
from laprox_kernels.gpu.support import Unsupported

SHAPES = [(32, 8, 32_768), (5, 3, 10_007), (1, 1, 1)] if GPU else [(3, 2, 700), (2, 3, 5), (1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_a_sort(seed, kind, shape):
    scores = fill(kind, shape)
    number = scores.numel()
    for k in {1, number, (number + 19) // 20, randint(1, number)}:
        expected = select_oracle(scores, k)
        for version in (select, reference.select):
            kept, cu_cells = version(scores, k)
            assert kept.dtype == cu_cells.dtype == torch.int64
            assert torch.equal(kept, expected[0]), k
            assert torch.equal(cu_cells, expected[1]), k


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_by_itself(seed, kind, shape):
    scores = fill(kind, shape)
    layers, heads, length = shape
    for k in {1, heads * length, randint(1, heads * length)}:
        of_layers = [select_oracle(layer[None], k) for layer in scores]
        kept = torch.cat([at + i * heads * length for i, (at, _) in enumerate(of_layers)])
        starts = torch.cat([cu[:-1] + i * k for i, (_, cu) in enumerate(of_layers)])
        for version in (select, reference.select):
            got, cu_cells = version(scores, k, layers)
            assert got.dtype == cu_cells.dtype == torch.int64
            assert torch.equal(got, kept), k
            assert torch.equal(cu_cells[:-1], starts) and cu_cells[-1] == layers * k, k


def test_what_is_not_served_is_named():
    scores = torch.zeros(2, 2, 2, device=DEVICE)
    for given, k, groups, named in [
        (scores, 9, 1, "k = 9"), (scores, 0, 1, "k = 0"), (scores.half(), 1, 1, "float16"),
        (scores, 5, 2, "k = 5 of 4"), (scores, 1, 3, "3 groups of 4"), (scores, 1, 0, "0 groups"),
    ]:  # fmt: skip
        with pytest.raises(Unsupported, match=named):
            select(given, k, groups)


if GPU:

    def test_no_host_sync(seed):
        scores = fill("like LaProx", SHAPES[0])
        select(scores, 1000)
        torch.cuda.set_sync_debug_mode("error")
        try:
            select(scores, 2000)
        finally:
            torch.cuda.set_sync_debug_mode("default")
