"""The best of every row: the same cells as a sort, whatever the scores, and nothing else is written."""

from math import inf

import pytest
import torch
from kernel_cases import DEVICE, GPU, KINDS, fill, randint

from laprox_kernels import reference
from laprox_kernels.gpu.floor import floor
from laprox_kernels.gpu.support import Unsupported

SHAPES = [(32, 8, 32_768), (5, 3, 10_007), (1, 1, 1)] if GPU else [(1, 2, 5_000), (3, 2, 70), (1, 1, 1)]


def oracle(scores, count):
    """Row by row, by one sort of (score, index) pairs in float64; NaN is as low as -inf."""
    expected = scores.clone()
    for row in expected.view(-1, scores.shape[-1]):
        numbers = row.double().nan_to_num(nan=-inf, posinf=inf, neginf=-inf)
        row[numbers.neg().sort(stable=True).indices[:count]] = inf
    return expected


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_a_sort(seed, kind, shape):
    scores = fill(kind, shape)
    length = shape[-1]
    for count in {0, 1, length, (length + 19) // 20, randint(0, length)}:
        expected = oracle(scores, count)
        for version in (floor, reference.floor):
            got = scores.clone()
            version(got, count)
            # Bit by bit: NaN stays the NaN it was.
            assert torch.equal(got.view(torch.int32), expected.view(torch.int32)), count


def test_what_is_not_served_is_named():
    scores = torch.zeros(2, 2, 3, device=DEVICE)
    for given, count, named in [
        (scores, 4, "4 of 3"),
        (scores, -1, "-1 of 3"),
        (scores.half(), 1, "float16"),
    ]:
        with pytest.raises(Unsupported, match=named):
            floor(given, count)


if GPU:

    def test_no_host_sync(seed):
        scores = fill("like LaProx", SHAPES[0])
        floor(scores, 1000)
        torch.cuda.set_sync_debug_mode("error")
        try:
            floor(scores, 2000)
        finally:
            torch.cuda.set_sync_debug_mode("default")
