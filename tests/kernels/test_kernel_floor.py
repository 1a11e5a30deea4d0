"""The best of every row: the same cells as a sort, whatever the scores, and nothing else is written."""

from math import inf

import pytest
import torch
from kernel_cases import DEVICE, GPU, KINDS, fill, randint

from laprox_kernels import reference
from laprox_kernels.gpu import floor as module
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


# Of each head: none, one, a whole block, several of them and a part.
LENGTHS = [9_000, 0, 1, 4_096, 33] if GPU else [70, 0, 1, 32, 33]


@pytest.mark.parametrize("kind", KINDS)
def test_heads_of_unequal_length(seed, kind, monkeypatch):
    if not GPU:
        monkeypatch.setattr(module, "BLOCK", 32)
    scores = fill(kind, (sum(LENGTHS),))
    cu_cells = torch.tensor([0, *LENGTHS], device=DEVICE).cumsum(0)
    for count in (1, randint(2, 60)):
        heads = [oracle(head[None], count)[0] for head in scores.split(LENGTHS) if len(head)]
        expected = torch.cat(heads).view(torch.int32)
        for version in (floor, reference.floor):
            got = scores.clone()
            version(got, count, cu_cells)
            assert torch.equal(got.view(torch.int32), expected), count


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_the_scores_stay_where_there_is_room_for_the_result(seed, shape):
    scores = fill("special", shape)
    for count in (0, 1, shape[-1]):
        expected, before = oracle(scores, count), scores.clone()
        for version in (floor, reference.floor):
            out = torch.empty_like(scores)
            version(scores, count, out=out)
            assert torch.equal(out.view(torch.int32), expected.view(torch.int32)), count
            assert torch.equal(scores.view(torch.int32), before.view(torch.int32)), count


def test_what_is_not_served_is_named():
    scores = torch.zeros(2, 2, 3, device=DEVICE)
    for given, count, out, named in [
        (scores, 4, None, "4 of 3"),
        (scores, -1, None, "-1 of 3"),
        (scores.half(), 1, None, "float16"),
        (scores, 1, scores[0], r"out \[2, 3\]"),
        (scores, 1, scores.half(), "float16"),
    ]:
        with pytest.raises(Unsupported, match=named):
            floor(given, count, out=out)


if GPU:

    def test_no_host_sync(seed):
        scores = fill("like LaProx", SHAPES[0])
        floor(scores, 1000)
        torch.cuda.set_sync_debug_mode("error")
        try:
            floor(scores, 2000)
        finally:
            torch.cuda.set_sync_debug_mode("default")
