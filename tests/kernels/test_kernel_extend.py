"""New tokens over compressed rows and over themselves, against float64."""

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, GPU, TOLERANCE, error, extend_oracle, random_pool, random_rows

from laprox_kernels import reference
from laprox_kernels.gpu.extend import extend

BIG = 16 if GPU else 1
SHAPES = [(32, 8, 4, 128), (3, 5, 3, 64)] if GPU else [(2, 2, 3, 64)]
CASES = {
    "compressed": ([[5, ("ragged", 40 * BIG)], [66, ("one head", 9 * BIG)]], [37 * BIG, 1]),
    "with plain rows": ([[0], [130 * BIG], [2, ("even", 3 * BIG)]], [70, 3, 0]),
    "eight segments": ([[0] + [("ragged", 1 + i) for i in range(8)]], [9 * BIG]),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CASES)
def test_equals_float64(seed, name, shape, dtype):
    layers, heads, group, dim = shape
    specs, new = CASES[name]
    need = sum(new) + sum(spec[0] + sum(slots for _, slots in spec[1:]) for spec in specs)
    keys, values = random_pool(need, layers, heads, dim, dtype)
    rows, free = random_rows(specs, need, layers * heads)
    cu_new = torch.tensor([0, *new], device=DEVICE).cumsum(0)
    queries = torch.randn(sum(new), heads * group, dim, device=DEVICE, dtype=dtype)
    given = (queries, keys, values, layers - 1, rows, free[: sum(new)], cu_new)
    expected = extend_oracle(*given, dim**-0.5)
    assert error(extend(*given, max(new), dim**-0.5), expected) <= TOLERANCE[dtype]
    assert error(extend(*given, max(new) + 50, dim**-0.5), expected) <= TOLERANCE[dtype]
    assert error(reference.extend(*given, max(new), dim**-0.5), expected) <= TOLERANCE[dtype]


def test_queries_may_be_strided(seed):
    keys, values = random_pool(16, 1, 2, 64, DTYPES[1])
    rows, free = random_rows([[5]], 16, 2)
    new = torch.tensor([0, 3], device=DEVICE)
    queries = torch.randn(3, 64, 4, device=DEVICE, dtype=DTYPES[1]).transpose(1, 2)
    answers = [
        extend(q, keys, values, 0, rows, free[:3], new, 3, 0.1) for q in (queries, queries.contiguous())
    ]
    assert torch.equal(*answers)
