"""A view that is shrunk, step by step, is cell for cell the view that the smaller budget would have made."""

from contextlib import contextmanager, nullcontext
from itertools import cycle

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, GPU, randint, random_pool

import laprox_kernels as kernels
from laprox_kernels import dispatch
from laprox_kernels.gpu import floor, select
from laprox_sglang.scorers.allocators import ALLOCATORS, Allocation, keep, keep_fewer

ALLOCATIONS = [
    *ALLOCATORS.values(),
    Allocation("model", 0.2),
    Allocation("layer", 0.0),
    Allocation("layer", 0.5),
]
KINDS = ["random", "ties", "one head", "nan", "all equal"]
SHAPES = [(32, 8, 4_000), (5, 3, 1_000)] if GPU else [(2, 2, 70), (3, 1, 90)]
DIM, SINKS, WINDOW = 64, 2, 5
PROTECTED = SINKS + WINDOW


def scores_of(kind, shape):
    scores = torch.rand(shape, device=DEVICE) ** 4
    if kind == "ties":
        scores = (scores * 9).round()
    elif kind == "one head":
        scores[-1, 0] *= 1e6
    elif kind == "nan":
        scores[torch.rand(shape, device=DEVICE) < 0.3] = float("nan")
    elif kind == "all equal":
        scores.zero_()
    scores[..., :SINKS] = scores[..., -WINDOW:] = float("inf")
    return scores


def check_chain(allocation, kind, shape, served_by, most=10**6):
    """Shrinks a view of random size up to ``most`` times, with the kernels that ``served_by`` puts in place;
    beside it the reference packs the same prompt anew."""
    layers, heads, length = shape
    cells = layers * heads
    prompt = scores_of(kind, shape)
    slots = randint(length // 2, length - 1)
    every = torch.randperm(2 * length, device=DEVICE)
    row, own = every[:length], every[length:][:slots]
    pool = random_pool(2 * length, layers, heads, DIM, DTYPES[1])

    def of_the_prompt(slots):
        kept, cu_cells = keep(prompt.clone(), slots, allocation, PROTECTED)
        pools = pool[0].clone(), pool[1].clone()
        kernels.pack(*pools, row, kept, own[:slots])
        return kept, cu_cells, pools

    before = prompt.clone()
    with served_by():
        kept, cu_cells = keep(prompt, slots, allocation, PROTECTED, torch.empty_like(prompt))
    assert torch.equal(prompt.view(torch.int32), before.view(torch.int32)), "the scores were to stay"
    scores = prompt.flatten()[kept]
    kernels.pack(*pool, row, kept, own)
    steps = 0
    while slots > PROTECTED + 1 and steps < most:
        slots = randint(PROTECTED + 1, slots - 1)
        marked = torch.empty_like(scores)
        expected = of_the_prompt(slots)
        with served_by():
            chosen, cu_cells = keep_fewer(scores, cu_cells, layers, slots, allocation, PROTECTED, marked)
            # In place: the view's own slots are read, and its first ones written.
            source = own[chosen // cells] * cells + chosen % cells
            kernels.pack(*pool, None, source, own[:slots], staged=True)
        kept, scores = kept[chosen], scores[chosen]
        assert torch.equal(kept, expected[0]) and torch.equal(cu_cells, expected[1])
        assert all(
            torch.equal(got[own[:slots]], wanted[own[:slots]])
            for got, wanted in zip(pool, expected[2], strict=True)
        )
        steps += 1
    assert steps
    print(f"{steps} shrinks to {slots} slots of {length}: {allocation}, {kind}")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("allocation", ALLOCATIONS, ids=str)
def test_a_chain_of_shrinks_is_the_smaller_budget(seed, allocation, kind, shape):
    check_chain(allocation, kind, shape, nullcontext)


@pytest.mark.parametrize(
    ("allocation", "kind"), [*zip(ALLOCATIONS, cycle(["ties", "random", "nan"]))] if not GPU else [], ids=str
)
def test_it_is_for_the_triton_kernels_too(seed, allocation, kind, monkeypatch):
    @contextmanager
    def triton():
        with monkeypatch.context() as patch:
            patch.setattr(dispatch, "on_gpu", lambda device: True)
            # Small blocks: several of them a row, and less work for the interpreter.
            for module, name in ((floor, "BLOCK"), (select, "BLOCK"), (select, "COMPACTION_BLOCK")):
                patch.setattr(module, name, 32)
            yield

    check_chain(allocation, kind, (2, 2, 45), triton, most=2)
