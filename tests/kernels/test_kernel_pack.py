"""Packing: every kept cell where it belongs, nothing else touched, however source and target overlap."""

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, GPU, POOLS, bits, paired, random_bits, random_pool

import laprox_kernels
from laprox_kernels import reference
from laprox_kernels.gpu.pack import pack
from laprox_kernels.gpu.support import Unsupported

LENGTH = 1500 if GPU else 60
SHAPES = [(32, 8, 128), (3, 5, 64)] if GPU else [(2, 2, 64), (3, 1, 128)]
VERSIONS = {"triton": pack, "reference": reference.pack}


def choose(kind, cells, length, slots):
    number = cells * slots
    if kind == "first":
        return (torch.arange(cells)[:, None] * length + torch.arange(slots)).flatten()
    if kind == "last":
        return (torch.arange(cells)[:, None] * length + torch.arange(length - slots, length)).flatten()
    if kind == "one head":
        first = int(torch.randint(0, cells, ())) * length
        rest = torch.randperm(cells * length)
        rest = rest[(rest < first) | (rest >= first + length)]
        return torch.cat([torch.arange(first, first + min(length, number)), rest])[:number].sort().values
    return torch.randperm(cells * length)[:number].sort().values


def place(where, row, kept, slots, others):
    """Slots of a view: apart from those read, or among them."""
    if where == "apart":
        return others[:slots]
    if where == "front":
        return row[:slots].clone()
    if where == "reversed":
        return row.flip(0)[:slots]
    if where == "most read":
        # Every slot of the view is a source, of other cells than it receives wherever it can.
        read = (kept % len(row)).bincount(minlength=len(row)).argsort(descending=True)
        return row[read[:slots].roll(1)]
    return torch.cat([row, others])[torch.randperm(len(row) + len(others), device=row.device)[:slots]]


KINDS, SHARES = ["random", "first", "last", "one head"], [0.05, 0.5, 1.0]


@pytest.mark.parametrize(("share", "kind", "shape", "dtype"), paired(SHARES, KINDS, SHAPES))
def test_moves_cells_and_nothing_else(seed, kind, share, shape, dtype):
    layers, heads, dim = shape
    cells, slots = layers * heads, max(1, int(LENGTH * share))
    keys, values = random_bits(2 * LENGTH + 9, layers, heads, dim, dtype)
    every = torch.randperm(2 * LENGTH + 9, device=DEVICE)
    # As in a server: behind a prefix, wherever in memory that is.
    row, others = every[: LENGTH + 1][1:], every[LENGTH + 1 :]
    kept = choose(kind, cells, LENGTH, slots).to(DEVICE)
    for where in ("apart", "front", "reversed", "most read", "anywhere"):
        view = place(where, row, kept, slots, others)
        expected = []
        for pool in map(bits, (keys, values)):
            by_cell = pool[row].permute(1, 2, 0, 3).reshape(cells * LENGTH, -1)[kept]
            expected.append(pool.index_copy(0, view, by_cell.view(slots, layers, heads, -1)))
        # What is apart may be staged too: the first of several requests to be packed does not know.
        for staged in (False, True) if where == "apart" else (True,):
            for version in VERSIONS.values():
                pools = keys.clone(), values.clone()
                positions = torch.full_like(kept, -1, dtype=torch.int32)
                version(*pools, row, kept, view, staged, positions)
                assert all(map(torch.equal, map(bits, pools), expected))
                assert torch.equal(positions.long(), kept % LENGTH)
                pools = keys.clone(), values.clone()
                version(*pools, row, kept, view, staged)
                assert all(map(torch.equal, map(bits, pools), expected))


@pytest.mark.parametrize("dtype", POOLS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("where", ["apart", "among"])
def test_cells_from_anywhere_in_the_pool(seed, where, shape, dtype):
    layers, heads, dim = shape
    cells, slots = layers * heads, LENGTH // 3
    pools = random_bits(2 * LENGTH, layers, heads, dim, dtype)
    every = torch.randperm(2 * LENGTH, device=DEVICE)
    view, others = every[:slots], every[slots:]
    # In any order, of any layer and head: one cell may even be wanted twice.
    source = torch.randint(0, 2 * LENGTH * cells, (slots * cells,), device=DEVICE)
    if where == "apart":
        source = others[torch.randint(0, len(others), source.shape, device=DEVICE)] * cells + source % cells
    expected = [
        pool.index_copy(0, view, pool.flatten(0, 2)[source].view(slots, layers, heads, -1))
        for pool in map(bits, pools)
    ]
    for staged in (False, True) if where == "apart" else (True,):
        for version in (*VERSIONS.values(), laprox_kernels.pack):
            got = pools[0].clone(), pools[1].clone()
            version(*got, None, source, view, staged)
            assert all(map(torch.equal, map(bits, got), expected))


@pytest.mark.parametrize("version", VERSIONS)
def test_cells_of_the_pool_have_no_positions(version):
    keys, values = random_pool(12, 2, 2, 64, DTYPES[1])
    before, kept = keys.clone(), torch.arange(8, device=DEVICE)
    with pytest.raises(ValueError, match="no positions"):
        VERSIONS[version](keys, values, None, kept, kept[:2], False, torch.zeros_like(kept))
    assert torch.equal(keys, before)


def test_nothing_kept(seed):
    keys, values = random_pool(8, 2, 2, 64, DTYPES[1])
    before, none = keys.clone(), torch.empty(0, dtype=torch.int64, device=DEVICE)
    for version in VERSIONS.values():
        version(keys, values, torch.arange(8, device=DEVICE), none, none)
    assert torch.equal(keys, before)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("slots", [1, 3])
def test_a_view_of_another_length_is_refused(seed, version, slots):
    keys, values = random_pool(12, 2, 2, 64, DTYPES[1])
    before = keys.clone()
    kept = torch.arange(8, device=DEVICE)
    with pytest.raises(ValueError, match="8 kept"):
        VERSIONS[version](keys, values, torch.arange(4, device=DEVICE), kept, torch.arange(4, 4 + slots))
    assert torch.equal(keys, before)


def test_more_than_there_is_and_a_part_of_a_slot_are_refused(seed):
    keys, values = random_pool(12, 2, 2, 64, DTYPES[1])
    for kept, view in ((torch.arange(16), torch.arange(4, 8)), (torch.arange(7), torch.arange(4, 6))):
        with pytest.raises(Unsupported, match=f"{len(kept)} kept"):
            pack(keys, values, torch.arange(3, device=DEVICE), kept.to(DEVICE), view.to(DEVICE))


if GPU:

    def test_full_size_in_a_graph_without_a_host_sync(seed):
        keys, values = random_pool(66_500, 32, 8, 128, torch.bfloat16)
        assert keys.numel() > 2**31
        row = torch.arange(66_499, 499, -1, device=DEVICE)
        kept = torch.randperm(256 * 66_000, device=DEVICE)[: 256 * 400].sort().values
        expected = keys.view(-1, 128)[row[kept % 66_000] * 256 + kept // 66_000]
        for staged, view in ((False, torch.arange(1, 401, device=DEVICE)), (True, row[:400])):
            kept_keys = keys[view].clone()
            pack(keys, values, row, kept, view, staged)
            assert torch.equal(keys[view].view(-1, 128), expected)
            keys[view] = kept_keys
            torch.cuda.set_sync_debug_mode("error")
            try:
                pack(keys, values, row, kept, view, staged)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            keys[view] = kept_keys
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                pack(keys, values, row, kept, view, staged)
            keys[view] = kept_keys
            graph.replay()
            assert torch.equal(keys[view].view(-1, 128), expected)
            keys[view] = kept_keys
