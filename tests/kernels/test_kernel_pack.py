"""Packing: every kept cell where it belongs, nothing else touched, however source and target overlap."""

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, GPU, random_pool

from laprox_kernels import reference
from laprox_kernels.gpu.pack import pack

LENGTH = 1500 if GPU else 60
SHAPES = [(32, 8, 128), (3, 5, 64)] if GPU else [(2, 2, 64), (3, 1, 128)]


def choose(kind, cells, length, slots):
    number = cells * slots
    if kind == "first":  # every source lies inside the target
        return (torch.arange(cells)[:, None] * length + torch.arange(slots)).flatten()
    if kind == "last":
        return (torch.arange(cells)[:, None] * length + torch.arange(length - slots, length)).flatten()
    if kind == "one head":
        first = int(torch.randint(0, cells, ())) * length
        rest = torch.randperm(cells * length)
        rest = rest[(rest < first) | (rest >= first + length)]
        return torch.cat([torch.arange(first, first + min(length, number)), rest])[:number].sort().values
    return torch.randperm(cells * length)[:number].sort().values


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["random", "first", "last", "one head"])
def test_moves_cells_and_nothing_else(seed, kind, share, shape, dtype):
    layers, heads, dim = shape
    cells, slots = layers * heads, max(1, int(LENGTH * share))
    keys, values = random_pool(LENGTH + 9, layers, heads, dim, dtype)
    row = torch.randperm(LENGTH + 9, device=DEVICE)[:LENGTH]
    kept = choose(kind, cells, LENGTH, slots).to(DEVICE)
    scores = torch.rand(layers, heads, LENGTH, device=DEVICE)

    expected = []
    for pool in (keys, values):
        before = pool.clone()
        after = pool.clone()
        by_cell = before[row].permute(1, 2, 0, 3).reshape(cells * LENGTH, dim)[kept]
        after[row[:slots]] = by_cell.view(slots, layers, heads, dim)
        expected.append(after)

    for version in (pack, reference.pack):
        pools = keys.clone(), values.clone()
        positions = torch.full_like(kept, -1, dtype=torch.int32)
        kept_scores = torch.full_like(kept, float("nan"), dtype=torch.float32)
        version(*pools, row, kept, positions=positions, scores=scores, kept_scores=kept_scores)
        assert torch.equal(pools[0], expected[0])
        assert torch.equal(pools[1], expected[1])
        assert torch.equal(positions.long(), kept % LENGTH)
        assert torch.equal(kept_scores, scores.flatten()[kept])


def test_nothing_kept_and_no_extras(seed):
    keys, values = random_pool(8, 2, 2, 64, DTYPES[1])
    before = keys.clone()
    row = torch.arange(8, device=DEVICE)
    pack(keys, values, row, torch.empty(0, dtype=torch.int64, device=DEVICE))
    assert torch.equal(keys, before)
    pack(keys, values, row, torch.arange(4, device=DEVICE) * 8 + 7)
    assert torch.equal(keys[0], before[7])
