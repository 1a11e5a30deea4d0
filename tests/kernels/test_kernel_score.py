"""Scores against the method's definition in float64, from W_O itself."""

import pytest
import torch
from kernel_cases import (
    DEVICE,
    DTYPES,
    FP8,
    GPU,
    POOLS,
    TOLERANCE,
    TURNS,
    error,
    paired,
    queries_dtype,
    random_pool,
    score_oracle,
)

from laprox_kernels import reference
from laprox_kernels.gpu import score as module
from laprox_kernels.gpu import support
from laprox_kernels.gpu.score import score
from laprox_kernels.gpu.support import Unsupported, score_bytes
from laprox_sglang.options.server import Config
from laprox_sglang.scorers.allocators import ALLOCATORS, keep
from laprox_sglang.scorers.rank import compare_layers

AVERAGE, PARABOLA = ("average", 15), ("parabola", 17)
assert Config().method.pooling in (AVERAGE, PARABOLA), "the default has to be among the cases"
# layers, heads, group, dim, window, positions, start, sinks, pooling
CASES = [
    (2, 2, 2, 64, 8, 300, 0, 4, AVERAGE), (3, 1, 3, 64, 5, 200, 61, 0, ("average", 1)),
    (1, 2, 1, 64, 16, 150, 128, 4, ("average", 7)), (2, 2, 2, 64, 8, 300, 0, 4, PARABOLA),
    (3, 1, 3, 64, 5, 200, 61, 0, ("parabola", 1)), (1, 1, 12, 128, 16, 150, 128, 4, ("parabola", 21)),
]  # fmt: skip
if GPU:
    CASES += [
        (2, 8, 4, 128, 32, 20_000, 0, 4, AVERAGE), (3, 8, 4, 128, 64, 5_001, 1_234, 0, ("average", 5)),
        (2, 4, 8, 128, 64, 3_000, 17, 1, PARABOLA), (2, 8, 4, 128, 24, 20_000, 0, 4, PARABOLA),
        (2, 2, 16, 128, 64, 3_001, 0, 4, PARABOLA), (2, 2, 15, 128, 24, 9_000, 5, 4, PARABOLA),
        (3, 8, 1, 64, 32, 4_097, 1, 0, ("parabola", 7)), (2, 8, 4, 128, 32, 33, 0, 0, AVERAGE),
    ]  # fmt: skip
SMALL = (3, 2, 2, 64, 8)
# Of the logits, in each layer of its own, as keys of fp8 are scaled.
SCALE = torch.tensor([0.1, 0.03, 0.2], device=DEVICE)
POOLINGS = (AVERAGE, PARABOLA)


def inputs(layers, heads, group, dim, window, n, dtype):
    """Queries, a pool, a row of it, and an output projection of another size in each layer."""
    hidden = heads * group * dim
    keys, values = random_pool(n + 7, layers, heads, dim, dtype)
    row = torch.randperm(n + 7, device=DEVICE)[:n]
    shape = layers, window, heads * group, dim
    queries = torch.randn(shape, device=DEVICE, dtype=queries_dtype(dtype)) * 2
    size = torch.logspace(-2, 2, layers, device=DEVICE).view(-1, 1, 1, 1) / hidden**0.5
    output = torch.randn(layers, heads * group, dim, hidden, device=DEVICE) * size
    return queries, keys, values, row, output


def gram_of(output):
    output = output.double()
    return (output @ output.mT).float()


def unwritten(layers, heads, length):
    return torch.full((layers, heads, length), float("nan"), device=DEVICE)


@pytest.mark.parametrize(("case", "_", "dtype"), paired(CASES, TURNS), ids=str)
def test_equals_the_definition(seed, case, _, dtype):
    layers, heads, group, dim, window, n, start, sinks, pooling = case
    queries, keys, values, row, output = inputs(layers, heads, group, dim, window, n, dtype)
    scale = SCALE[:layers] * 8 * dim**-0.5
    expected = score_oracle(queries, keys, values, row, start, output, scale, sinks, pooling)
    gram = gram_of(output)
    candidates = slice(sinks, n - start - window)
    for version in (score, reference.score):
        out, again = (unwritten(layers, heads, n - start) for _ in range(2))
        sums = version(queries, keys, values, row, start, gram, scale, sinks, pooling, out)
        assert torch.equal(out.isinf(), expected.isinf())
        assert sums.shape == (layers,) and sums.dtype == torch.float32
        for layer in range(layers):
            wanted = expected[layer, :, candidates]
            assert error(out[layer, :, candidates], wanted) <= TOLERANCE[dtype]
            assert float(sums[layer]) == pytest.approx(float(wanted.sum()), rel=TOLERANCE[dtype])
        if version is score:
            sums_again = score(queries, keys, values, row, start, gram, scale, sinks, pooling, again)
            assert torch.equal(out, again) and torch.equal(sums, sums_again)


@pytest.mark.parametrize(("pooling", "_", "dtype"), paired(POOLINGS, TURNS))
def test_however_many_layers_a_launch_serves(seed, pooling, _, dtype, monkeypatch):
    """One layer alone is the same to the bit; more are to rounding: they share the splits of a launch."""
    n, count = 90, 90 - 8 - 4
    queries, keys, values, row, output = inputs(*SMALL, n, dtype)
    gram = gram_of(output)
    real, launches = module.score_layers, []

    def counted(queries, *arguments):
        launches.append(len(queries))
        real(queries, *arguments)

    monkeypatch.setattr(module, "score_layers", counted)
    outs, sums = {}, {}
    for at_once, expected in {1: [1, 1, 1], 2: [2, 1], 3: [3], 40: [3]}.items():
        launches.clear()
        monkeypatch.setattr(module, "SCORE_BYTES", at_once * 4 * 2 * count + 3)
        outs[at_once] = unwritten(3, 2, n)
        sums[at_once] = score(queries, keys, values, row, 0, gram, SCALE, 4, pooling, outs[at_once])
        assert launches == expected
    for layer in range(3):
        one = slice(layer, layer + 1)
        pool = keys[:, one].contiguous(), values[:, one].contiguous()
        alone = unwritten(1, 2, n)
        sum_alone = score(queries[one], *pool, row, 0, gram[one], SCALE[one], 4, pooling, alone)
        assert torch.equal(alone[0], outs[1][layer]) and sum_alone[0] == sums[1][layer]
    assert torch.equal(outs[3], outs[40]) and torch.equal(sums[3], sums[40])
    for at_once in (2, 3):
        torch.testing.assert_close(outs[at_once], outs[1], rtol=1e-5, atol=0)
        torch.testing.assert_close(sums[at_once], sums[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("group", [1, 2, 3, 4])
@pytest.mark.parametrize("bound", [1, 3000, 10**6])
def test_contributions_take_no_more_than_is_said(bound, group, monkeypatch):
    """Of a layer as well whose own are above the bound: those of a long prompt are not made in parts."""
    monkeypatch.setattr(support, "SCORE_BYTES", bound)
    monkeypatch.setattr(module, "SCORE_BYTES", bound)
    layers, heads, dim, window, n = 3, 2, 64, 8, 150
    queries, keys, values, row, output = inputs(layers, heads, group, dim, window, n, DTYPES[0])
    real, taken = module.pool_kernel, []

    class Counted:
        def __getitem__(self, grid):
            def launch(contributions, *given, **options):
                taken.append(contributions.nbytes)
                real[grid](contributions, *given, **options)

            return launch

    monkeypatch.setattr(module, "pool_kernel", Counted())
    score(queries, keys, values, row, 0, gram_of(output), SCALE, 4, AVERAGE, unwritten(layers, heads, n))
    most = score_bytes(heads * group, heads, n)
    print(f"{max(taken)} of {most} bytes, {len(taken)} launches")
    assert max(taken) <= most
    # Nor is it split more than that asks for.
    assert len(taken) == 1 or max(taken) > most / 2


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("dtype", POOLS)
def test_the_size_of_a_projection_is_the_size_of_its_scores_and_of_their_sum(seed, pooling, dtype):
    """Powers of two: what the size of a layer's projection may change otherwise is nothing but rounding."""
    n = 90
    queries, keys, values, row, output = inputs(*SMALL, n, dtype)
    gram = gram_of(output)
    outs = []
    for power in (0, 40):
        # Far beyond what float16 holds, one way and the other.
        size = torch.tensor([2.0**-power, 1.0, 2.0**power], device=DEVICE).view(3, 1, 1)
        out = unwritten(3, 2, n)
        sums = score(queries, keys, values, row, 0, gram * size[..., None], SCALE, 4, pooling, out)
        summed = out[:, :, 4:82].double().sum((1, 2)).float()
        torch.testing.assert_close(sums, summed, rtol=1e-5, atol=0)
        outs.append(out / size.sqrt())
    torch.testing.assert_close(*outs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("version", [score, reference.score], ids=["triton", "reference"])
def test_a_factor_of_a_layers_values_decides_nothing(seed, version):
    """A checkpoint's v_scale, of which scoring is not told: a power of two here, so that fp8 rounds alike."""
    n = 90
    queries, keys, values, row, output = inputs(*SMALL, n, FP8)
    # No number of the pool may become one that e4m3 rounds.
    values = values.float().sign().mul(4).to(FP8)
    factor = torch.tensor([0.25, 1.0, 8.0], device=DEVICE)
    divided = (values.float() / factor.view(-1, 1, 1)).to(FP8)
    given = row, 0, gram_of(output), SCALE, 4, PARABOLA
    found = []
    for pool in (values, divided):
        out = unwritten(3, 2, n)
        sums = version(queries, keys, pool, *given, out)
        found.append((out, sums))
    (out, sums), (scaled, scaled_sums) = found
    # It was not for nothing: the scores themselves are others.
    torch.testing.assert_close(scaled * factor.view(-1, 1, 1), out, rtol=1e-6, atol=0)
    torch.testing.assert_close(scaled_sums * factor, sums, rtol=1e-6, atol=0)
    for allocation in ALLOCATORS.values():
        kept = []
        for scores, total in found:
            compared = scores.clone()
            compare_layers(compared, total, slice(4, n - 8))
            kept.append(keep(compared, 30, allocation, 12))
        assert all(map(torch.equal, *kept)), allocation


@pytest.mark.parametrize("pooling", POOLINGS)
def test_all_protected_and_worthless_values(seed, pooling):
    queries, keys, values, row, output = inputs(*SMALL, 100, DTYPES[1])
    gram = gram_of(output)
    for version in (score, reference.score):
        out = unwritten(3, 2, 9)
        sums = version(queries, keys, values, row, 91, gram, SCALE, 4, pooling, out)
        assert out.isinf().all() and (sums == 0).all()
    values[:, 1] = 0
    for version in (score, reference.score):
        out = unwritten(3, 2, 100)
        sums = version(queries, keys, values, row, 0, gram, SCALE, 4, pooling, out)
        assert (out[1, :, 4:92] == 0).all() and sums[1] == 0
        assert (out[::2, :, 4:92] > 0).all() and (sums[::2] > 0).all()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_nan_stays_where_it_is_and_shows_in_the_sum_of_its_layer(seed, pooling):
    queries, keys, values, row, output = inputs(*SMALL, 100, DTYPES[1])
    values[row[50], 2, 1] = float("nan")
    reach = pooling[1] // 2
    near = torch.zeros((3, 2, 100), dtype=torch.bool, device=DEVICE)
    near[2, 1, 50 - reach : 51 + reach] = True
    for version in (score, reference.score):
        out = torch.zeros((3, 2, 100), device=DEVICE)
        sums = version(queries, keys, values, row, 0, gram_of(output), SCALE, 4, pooling, out)
        assert torch.equal(out.isnan(), near)
        assert sums.isnan().tolist() == [False, False, True]


def test_what_is_not_served_is_named(seed):
    queries, keys, values, row, output = inputs(*SMALL, 100, DTYPES[1])
    gram, out = gram_of(output), torch.zeros((3, 2, 100), device=DEVICE)
    given = (row, 0, gram, SCALE, 4)
    with pytest.raises(Unsupported, match="window 96"):
        score(queries.repeat(1, 12, 1, 1), keys, values, *given, AVERAGE, out)
    for pooling in (("average", 6), ("max", 7)):
        with pytest.raises(Unsupported, match=f"pooling {pooling[0]} over {pooling[1]}"):
            score(queries, keys, values, *given, pooling, out)
        with pytest.raises(Unsupported, match=f"pooling {pooling[0]} over {pooling[1]}"):
            reference.score(queries, keys, values, *given, pooling, out)
    with pytest.raises(Unsupported, match="gram"):
        score(queries, keys, values, row, 0, gram[0], SCALE, 4, AVERAGE, out)
    for scale in (SCALE[:2], SCALE.double(), SCALE.repeat(2)[::2]):
        with pytest.raises(Unsupported, match="scale"):
            score(queries, keys, values, row, 0, gram, scale, 4, AVERAGE, out)
    with pytest.raises(Unsupported, match=r"queries torch\.float32"):
        score(queries.float(), keys.to(FP8), values.to(FP8), *given, AVERAGE, out)
    with pytest.raises(Unsupported, match="out"):
        score(queries, keys, values, *given, AVERAGE, out[0])
    with pytest.raises(Unsupported, match="contiguous False"):
        score(queries, keys[:, ::2], values, *given, AVERAGE, out)


if GPU:

    def test_full_size_in_a_graph_without_a_host_sync(seed):
        """Llama-3.1-8B's 32 layers over 40,000 positions: more than one launch, beyond 2^31 elements."""
        queries, keys, values, row, _ = inputs(32, 8, 4, 128, 32, 66_500, torch.bfloat16)
        assert keys.numel() > 2**31
        row = row[:40_000].clone()
        gram = torch.eye(128, device=DEVICE).expand(32, 32, 128, 128)
        scale = torch.full((32,), 128**-0.5, device=DEVICE)
        given = (queries, keys, values, row, 0, gram, scale, 4, AVERAGE)
        out, expected = unwritten(32, 8, 40_000), unwritten(32, 8, 40_000)
        score(*given, out)
        reference.score(*given, expected)
        for layer in range(32):
            assert error(out[layer, :, 4:-32], expected[layer, :, 4:-32]) <= TOLERANCE[torch.bfloat16]
        torch.cuda.set_sync_debug_mode("error")
        try:
            score(*given, expected)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(out, expected)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            score(*given, out)
        out.fill_(float("nan"))
        graph.replay()
        assert torch.equal(out, expected)
