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


def test_what_is_not_served_is_named():
    scores = torch.zeros(2, 2, 2, device=DEVICE)
    for given, k, named in [(scores, 9, "k = 9"), (scores, 0, "k = 0"), (scores.half(), 1, "float16")]:
        with pytest.raises(Unsupported, match=named):
            select(given, k)


if GPU:

    def test_no_host_sync(seed):
        scores = fill("like LaProx", SHAPES[0])
        select(scores, 1000)
        torch.cuda.set_sync_debug_mode("error")
        try:
            select(scores, 2000)
        finally:
            torch.cuda.set_sync_debug_mode("default")
