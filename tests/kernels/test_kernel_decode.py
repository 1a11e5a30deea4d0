"""Ragged decode against float64, on every shape of row that pruning can leave."""

import pytest
import torch
from kernel_cases import (
    DEVICE,
    DTYPES,
    FP8,
    GPU,
    TOLERANCE,
    TURNS,
    decode_oracle,
    error,
    paired,
    queries_dtype,
    randint,
    random_pool,
    random_rows,
)

from laprox_kernels import Rows, reference
from laprox_kernels.gpu.decode import decode, plan
from laprox_kernels.gpu.support import Unsupported

BIG = 16 if GPU else 1
SHAPES = [(32, 8, 4, 128), (4, 2, 8, 64), (3, 5, 3, 128)] if GPU else [(2, 2, 4, 64)]
ROWS = {
    "dense": [[70 * BIG], [1], [64 * BIG]],
    "packed": [[0, ("even", 9 * BIG)], [3, ("ragged", 40 * BIG)]],
    "mixed": [[5, ("ragged", 11 * BIG)], [130 * BIG], [1, ("one head", 7 * BIG)]],
    "one cell": [[0, ("one cell", 30 * BIG)]],
    # As many (row, KV head) as programs: what is one piece is not merged.
    "equally long": [[150 * BIG]] * (32 if GPU else 4),
    "some in one piece": [[150 * BIG], [0, ("even", 3)], [150 * BIG], [9, ("ragged", 40)]],
    "eight segments": [
        [2] + [("ragged", 1 + i * BIG) for i in range(8)],
        [4, ("even", 3), ("one head", 2)],
        [9],
    ],
}


def case(name, shape, dtype):
    layers, heads, group, dim = shape
    need = sum(spec[0] + sum(slots for _, slots in spec[1:]) for spec in ROWS[name])
    keys, values = random_pool(need + 5, layers, heads, dim, dtype)
    rows, _ = random_rows(ROWS[name], need + 5, layers * heads)
    shape = len(ROWS[name]), heads * group, dim
    queries = torch.randn(shape, device=DEVICE, dtype=queries_dtype(dtype))
    return queries, keys, values, rows


@pytest.mark.parametrize(("name", "shape", "_", "dtype"), paired(ROWS, SHAPES, TURNS))
def test_equals_float64(seed, name, shape, _, dtype):
    queries, keys, values, rows = case(name, shape, dtype)
    layer, scale = randint(0, shape[0] - 1), shape[3] ** -0.5
    value_scale = randint(1, 300) / 100
    expected = decode_oracle(queries, keys, values, layer, rows, scale) * value_scale
    given = queries, keys, values, layer, rows, scale
    out = decode(*given, value_scale=value_scale)
    assert out.dtype == queries.dtype and error(out, expected) <= TOLERANCE[dtype]
    assert error(reference.decode(*given, value_scale), expected) <= TOLERANCE[dtype]
    planned = plan(rows, *shape[:2])
    for _ in range(2):
        assert torch.equal(out, decode(*given, planned, value_scale))


@pytest.mark.parametrize("group", range(1, 17) if GPU else (3, 16))
def test_group_sizes(seed, group):
    queries, keys, values, rows = case("mixed", (2, 2, group, 64), DTYPES[1])
    expected = decode_oracle(queries, keys, values, 1, rows, 0.3)
    assert error(decode(queries, keys, values, 1, rows, 0.3), expected) <= TOLERANCE[DTYPES[1]]


def test_one_key_only(seed):
    keys, values = random_pool(4, 1, 2, 64, DTYPES[1])
    rows, _ = random_rows([[1]], 4, 2)
    queries = torch.randn(1, 4, 64, device=DEVICE, dtype=DTYPES[1])
    expected = values[rows.slots[0, 0], 0].repeat_interleave(2, dim=0)
    assert torch.equal(decode(queries, keys, values, 0, rows, 1.0)[0], expected)


def test_every_number_of_fp8_is_read_as_it_is(seed):
    """A slot of 256 numbers: all that there are, 0 for the two that are none."""
    numbers = torch.arange(256, dtype=torch.uint8, device=DEVICE).view(FP8)
    numbers = numbers.float().nan_to_num(0).to(FP8).view(1, 2, 2, 64)
    rows, _ = random_rows([[1]], 1, 4)
    queries = torch.randn(1, 4, 64, device=DEVICE, dtype=torch.bfloat16)
    for layer in range(2):
        expected = numbers[0, layer].bfloat16().repeat_interleave(2, dim=0)
        assert torch.equal(decode(queries, numbers, numbers, layer, rows, 1.0)[0], expected)


def test_queries_may_be_strided_and_the_batch_empty(seed):
    queries, keys, values, rows = case("dense", (2, 2, 2, 64), DTYPES[1])
    wide = torch.randn(len(queries), 12, 64, device=DEVICE, dtype=DTYPES[1])
    wide[:, 4:8] = queries
    expected = decode(queries, keys, values, 0, rows, 0.1)
    assert torch.equal(decode(wide[:, 4:8], keys, values, 0, rows, 0.1), expected)
    assert decode(queries[:0], keys, values, 0, rows._replace(cu_cells=rows.cu_cells[:0]), 0.1).shape[0] == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda q, k: (q[..., :32], k[..., :32].contiguous()), "head dim 32"),
        (lambda q, k: (q[:, :3], k), "3 query heads"),
        (lambda q, k: (q.to(torch.float64), k), "float64"),
        (lambda q, k: (q, k.transpose(1, 2)), "contiguous False"),
    ],
)
def test_what_is_not_served_is_named(seed, change, named):
    queries, keys, values, rows = case("dense", (2, 2, 4, 64), DTYPES[1])
    queries, keys = change(queries, keys)
    with pytest.raises(Unsupported, match=named):
        decode(queries, keys, values[..., : keys.shape[-1]], 0, rows, 1.0)


if GPU:

    def test_captured_in_a_graph_with_other_lengths_at_replay(seed):
        queries, keys, values, rows = case("mixed", SHAPES[0], DTYPES[0])
        other, _ = random_rows(
            [[9, ("even", 20)], [40, ("ragged", 100)], [1000]], keys.shape[0], SHAPES[0][0] * SHAPES[0][1]
        )
        width = max(rows.slots.shape[1], other.slots.shape[1])
        slots = torch.nn.functional.pad(rows.slots, (0, width - rows.slots.shape[1]))
        static = Rows(slots, *(tensor.clone() for tensor in rows[1:]))

        def step():
            planned = plan(static, *SHAPES[0][:2])
            return {layer: decode(queries, keys, values, layer, static, 0.1, planned) for layer in (3, 31)}

        step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outs = step()
        for now in (rows, other, rows):
            static.slots[:, : now.slots.shape[1]] = now.slots
            for target, source in zip(static[1:], now[1:], strict=True):
                target.copy_(source)
            for layer, out in outs.items():
                out.fill_(float("nan"))
                graph.replay()
                expected = decode_oracle(queries, keys, values, layer, now, 0.1)
                assert error(out, expected) <= TOLERANCE[DTYPES[0]]

    @pytest.mark.parametrize("specs", [[[20_000]], [[900 + 77 * i] for i in range(60)]])
    def test_the_same_bits_every_time(seed, specs):
        keys, values = random_pool(sum(spec[0] for spec in specs) + 1, 1, 8, 128, DTYPES[0])
        rows, _ = random_rows(specs, len(keys), 8)
        rows = rows._replace(segment_start=rows.segment_start[:, :0], cu_cells=rows.cu_cells[:, :0])
        queries = torch.randn(len(specs), 32, 128, device=DEVICE, dtype=DTYPES[0])
        planned = plan(rows, 1, 8)
        first = decode(queries, keys, values, 0, rows, 0.1, planned)
        assert error(first, decode_oracle(queries, keys, values, 0, rows, 0.1)) <= TOLERANCE[DTYPES[0]]
        for _ in range(500):
            assert torch.equal(decode(queries, keys, values, 0, rows, 0.1, planned), first)

    def test_pool_beyond_32_bit_offsets_and_no_host_sync(seed):
        keys, values = random_pool(66_500, 32, 8, 128, torch.bfloat16)
        assert keys.numel() > 2**31
        rows, _ = random_rows([[3000, ("ragged", 2000)], [1], [8192]], keys.shape[0], 256)
        queries = torch.randn(3, 32, 128, device=DEVICE, dtype=torch.bfloat16)
        decode(queries, keys, values, 31, rows, 0.1)
        torch.cuda.set_sync_debug_mode("error")
        try:
            out = decode(queries, keys, values, 31, rows, 0.1)
            again = decode(queries, keys, values, 31, rows, 0.1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(out, again)
        assert error(out, decode_oracle(queries, keys, values, 31, rows, 0.1)) <= 1e-2
