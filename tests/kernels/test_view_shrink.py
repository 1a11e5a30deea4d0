"""A view that shrinks, step by step, is what its prompt would have been packed into at once."""

from contextlib import contextmanager, nullcontext
from itertools import chain, pairwise, product
from types import SimpleNamespace

import pytest
import torch
from kernel_cases import DEVICE, GPU, bits, randint

from laprox_kernels import dispatch
from laprox_kernels.gpu import floor, select
from laprox_sglang.layers import ScoredLayer
from laprox_sglang.options.server import Config
from laprox_sglang.ranks import ONE_RANK
from laprox_sglang.scorers import SCORERS, SEE_BUDGET
from laprox_sglang.scorers.allocators import ALLOCATORS
from laprox_sglang.views.plan import Plan
from laprox_sglang.views.pressure import PARTS, Holding
from laprox_sglang.views.prune import Pruner

LAYERS, HEADS, GROUP, DIM, WINDOW = 2, 2, 2, 64, 3
CELLS = LAYERS * HEADS
DTYPE = torch.bfloat16 if GPU else torch.float32
NESTED = [name for name in SCORERS if name not in SEE_BUDGET]
METHODS = list(product(NESTED, ALLOCATORS))


@contextmanager
def triton():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "on_gpu", lambda device: True)
        # Small blocks: several of them a row, and less work for the interpreter.
        for module, name in ((floor, "BLOCK"), (select, "BLOCK"), (select, "COMPACTION_BLOCK")):
            patch.setattr(module, name, 32)
        yield


class Prompt:
    """A random prompt in a pool of its own, and what it may be packed into."""

    def __init__(self, config: Config, tokens: int, ties: bool) -> None:
        torch.manual_seed(randint(0, 2**30))
        shape = (3 * tokens, LAYERS, HEADS, DIM)
        self.keys, self.values = (torch.randn(shape, device=DEVICE).to(DTYPE) for _ in range(2))
        if ties:
            # Every token comes several times, and pooling is off: so do their scores.
            again = torch.arange(len(self.keys), device=DEVICE) % 5
            self.keys, self.values = self.keys[again], self.values[again]
        self.queries = torch.randn((LAYERS, WINDOW, HEADS * GROUP, DIM), device=DEVICE).to(DTYPE)
        # Slot 0 is nobody's.
        every = torch.randperm(len(self.keys) - 1, device=DEVICE) + 1
        self.table = every[:tokens].int().repeat(2, 1)
        self.own = every[tokens:]
        no_module = SimpleNamespace(k_scale_float=None, v_scale_float=None)
        self.layers = [
            ScoredLayer(
                str(i), no_module, torch.nn.Linear(HEADS * GROUP * DIM, 8, False, DEVICE, DTYPE),
                i, HEADS * GROUP, HEADS, DIM, DIM**-0.5,
            )
            for i in range(LAYERS)
        ]  # fmt: skip
        self.config = config

    def pruner(self) -> Pruner:
        """One that packs into a pool of its own."""
        pools = self.keys.clone(), self.values.clone()
        longest = self.table.shape[1]
        return Pruner(self.config, self.layers, *pools, self.table.clone(), longest, ONE_RANK)

    def view(self, pruner: Pruner, plan: Plan, slots: int):
        return pruner.make_view(plan, 1, self.queries, self.own[:slots], False, True)


def random_plan(tokens: int) -> Plan:
    start, sinks = randint(0, 5), randint(0, 2)
    spans = ((start + 10, start + 12),) if randint(0, 1) else ()
    least = sinks + WINDOW + 2 * len(spans) + randint(0, 4)
    return Plan(start, tokens, least, sinks, WINDOW, None, spans, randint(1, tokens - start - least))


def check_chain(config: Config, tokens: int, ties: bool, served_by, most: int = 10**6) -> None:
    prompt, plan = Prompt(config, tokens, ties), random_plan(tokens)
    pruner = prompt.pruner()
    with served_by():
        view = prompt.view(pruner, plan, plan.most)
    steps = 0
    while view.surplus and steps < most:
        slots = randint(plan.least, view.slots - 1)
        other = prompt.pruner()
        with served_by():
            view = pruner.shrink_view(view, 1, slots)
            once = prompt.view(other, plan._replace(least=slots, surplus=0), slots)
        view.check_integrity(pruner._req_to_token[1])
        assert torch.equal(view.own, once.own) and once.elastic is None
        for mine, its in zip((pruner._keys, pruner._values), (other._keys, other._values), strict=True):
            assert torch.equal(bits(mine[view.own]), bits(its[view.own]))
        assert torch.equal(pruner._req_to_token, other._req_to_token)
        assert torch.equal(view.table, once.table)
        assert view.host_counts.tolist() == once.host_counts.tolist()
        assert view.positions.tolist() == once.positions.tolist()
        assert view.surplus == slots - plan.least and (view.elastic is None) == (slots == plan.least)
        steps += 1
    assert steps


@pytest.mark.parametrize(("scorer", "allocator"), METHODS)
def test_with_every_scorer_and_allocator(seed, scorer, allocator):
    given = {"allocator": allocator, "budget": 0.1, "budget_max": 1, "window": WINDOW}
    for ties in (False, True):
        config = Config(scorer=scorer, **given, **({"pooling_kernel": 1} if ties else {}))
        check_chain(config, 60, ties, nullcontext)


@pytest.mark.parametrize(
    ("allocator", "ties"), [("layer", True), ("model", False), ("uniform", True)] if not GPU else []
)
def test_it_is_for_the_triton_kernels_too(seed, allocator, ties):
    config = Config(
        allocator=allocator, budget=0.1, budget_max=1, window=WINDOW, pooling_kernel=1 if ties else 17
    )
    check_chain(config, 40, ties, triton, most=2)


@pytest.mark.parametrize(("scorer", "allocator"), METHODS[:9])
def test_what_its_slots_carry(seed, scorer, allocator):
    """The best of its cells, of each layer or of all, as a share of what all candidates have."""
    config = Config(scorer=scorer, allocator=allocator, budget=0.1, budget_max=1, window=WINDOW)
    tokens = 60
    prompt, plan = Prompt(config, tokens, False), random_plan(tokens)
    pruner = prompt.pruner()
    view = prompt.view(pruner, plan, plan.most)
    scores = torch.empty((LAYERS, HEADS, plan.length), device=DEVICE)
    row = prompt.table[0].long()
    sums = pruner._scoring.run(prompt.queries, row, plan, scores)
    for a, b in plan.spans:
        scores[..., a - plan.start : b - plan.start] = float("inf")
    shares = (scores / sums[:, None, None]).double().flatten(0, 1).tolist()
    by_layer = [[] for _ in range(LAYERS)]
    at = view.positions.tolist()
    for cell, (a, b) in enumerate(pairwise(view.cu_cells.tolist())):
        of_cell = (shares[cell][position - plan.start] for position in at[a:b])
        by_layer[cell // HEADS] += [share for share in of_cell if share != float("inf")]
    groups = [[*chain(*by_layer)]] if allocator == "model" else by_layer
    ranked = [sorted(group, reverse=True) for group in groups]
    holding = Holding(plan.least, view.slots, plan.most, view.elastic.carried.tolist())
    for end, found in zip(holding.ends, holding.carried, strict=True):
        cells = (end - plan.protected) * CELLS // len(groups)
        assert found == pytest.approx(sum(sum(group[:cells]) for group in ranked) / LAYERS, abs=1e-6)
    assert len(holding.carried) == PARTS + 1 and holding.carried[-1] <= 1 + 1e-6
    # A prompt whose slots carry alike, whichever, would rank nobody.
    assert all(a <= b for a, b in pairwise(holding.carried)) and holding.carried[0] < holding.carried[-1]
    smaller = pruner.shrink_view(view, 1, (plan.least + plan.most) // 2)
    assert smaller.elastic is None or smaller.elastic.carried.tolist() == holding.carried
