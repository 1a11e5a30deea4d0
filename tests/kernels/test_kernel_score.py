"""Scores against the method's definition in float64, from W_O itself."""

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, GPU, TOLERANCE, error, randint, random_pool, score_oracle

from laprox_kernels import reference
from laprox_kernels.gpu.score import score
from laprox_kernels.gpu.support import Unsupported

# heads, group, dim, window, positions, start, sinks, pooling
CASES = [(2, 2, 64, 8, 300, 0, 4, 7), (1, 3, 64, 5, 200, 61, 0, 1), (2, 1, 64, 16, 150, 128, 4, 7)]
if GPU:
    CASES += [
        (8, 4, 128, 32, 20_000, 0, 4, 7), (8, 4, 128, 64, 5_001, 1_234, 0, 5),
        (4, 8, 128, 64, 3_000, 17, 1, 7),
        (8, 1, 64, 32, 4_097, 1, 0, 7), (8, 4, 128, 32, 33, 0, 0, 7),
    ]  # fmt: skip


def inputs(heads, group, dim, window, n, dtype):
    layers, hidden = 3, heads * group * dim
    pools = random_pool(n + 7, layers, heads, dim, dtype)
    keys, values = (pool[:, randint(0, layers - 1)] for pool in pools)
    row = torch.randperm(n + 7, device=DEVICE)[:n]
    queries = torch.randn(window, heads * group, dim, device=DEVICE, dtype=dtype) * 2
    output = torch.randn(heads * group, dim, hidden, device=DEVICE) / hidden**0.5
    return queries, keys, values, row, output


def gram_of(output, heads, form):
    output = output.double()
    if form != "joint":
        return (output @ output.transpose(1, 2)).float()
    grouped = output.view(heads, -1, *output.shape[1:])
    return torch.einsum("hgdx,hfex->hgfde", grouped, grouped).flatten(0, 1).float()


# The joint oracle forms every W x hidden product: at 20,000 positions that would be minutes.
FORMS = [(case, form) for case in CASES for form in ("mean", "sum")]
FORMS += [(case, "joint") for case in CASES if case[4] < 4_000]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("case", "form"), FORMS)
def test_equals_the_definition(seed, case, form, dtype):
    heads, group, dim, window, n, start, sinks, pooling = case
    queries, keys, values, row, output = inputs(heads, group, dim, window, n, dtype)
    scale = dim**-0.5
    expected = score_oracle(queries, keys, values, row, start, output, scale, sinks, pooling, form)
    gram = gram_of(output, heads, form)
    candidates = slice(sinks, n - start - window)
    for version in (score, reference.score):
        out = torch.full((heads, n - start), float("nan"), device=DEVICE)
        version(queries, keys, values, row, start, gram, scale, sinks, pooling, out, form)
        assert torch.equal(out.isinf(), expected.isinf())
        assert error(out[:, candidates], expected[:, candidates]) <= TOLERANCE[dtype]
        again = torch.full_like(out, float("nan"))
        version(queries, keys, values, row, start, gram, scale, sinks, pooling, again, form)
        if version is score:
            assert torch.equal(out, again)


def test_all_protected_and_worthless_values(seed):
    queries, keys, values, row, output = inputs(2, 2, 64, 8, 100, DTYPES[1])
    gram = gram_of(output, 2, "mean")
    out = torch.full((2, 9), float("nan"), device=DEVICE)
    score(queries, keys, values, row, 91, gram, 0.1, 4, 7, out)
    assert out.isinf().all()
    values.zero_()
    out = torch.full((2, 100), float("nan"), device=DEVICE)
    score(queries, keys, values, row, 0, gram, 0.1, 4, 7, out)
    assert (out[:, 4:92] == 0).all()


def test_nan_stays_visible(seed):
    queries, keys, values, row, output = inputs(2, 2, 64, 8, 100, DTYPES[1])
    values[row[50], 1] = float("nan")
    out = torch.zeros((2, 100), device=DEVICE)
    score(queries, keys, values, row, 0, gram_of(output, 2, "mean"), 0.1, 4, 7, out)
    assert out[:, 4:92].isnan().all()


def test_what_is_not_served_is_named(seed):
    queries, keys, values, row, output = inputs(2, 2, 64, 8, 100, DTYPES[1])
    gram, out = gram_of(output, 2, "mean"), torch.zeros((2, 100), device=DEVICE)
    with pytest.raises(Unsupported, match="window 96"):
        score(queries.repeat(12, 1, 1), keys, values, row, 0, gram, 0.1, 4, 7, out)
    with pytest.raises(Unsupported, match="pooling 6"):
        score(queries, keys, values, row, 0, gram, 0.1, 4, 6, out)
    with pytest.raises(Unsupported, match="gram"):
        score(queries, keys, values, row, 0, gram, 0.1, 4, 7, out, "joint")
