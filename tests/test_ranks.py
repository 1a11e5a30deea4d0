"""Ranks that share the heads of a model's layers, each with its part of the pool and of W_O."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.runtime_context import get_parallel

import laprox_kernels as kernels
from choice import check_choice
from laprox_patches.model import memory_pool
from laprox_patches.model.ranks import ranks_here
from laprox_patches.scheduler.leak_check import compare_ranks
from laprox_sglang.layers import ScoredLayer
from laprox_sglang.options.server import Config
from laprox_sglang.ranks import ONE_RANK, Ranks, heads_of_rank
from laprox_sglang.scorers.allocators import floor_cells, keep
from laprox_sglang.served_model import scored_layers
from laprox_sglang.views.memory import Itemsizes, needs
from laprox_sglang.views.plan import Plan
from laprox_sglang.views.prune import Pruner
from laprox_sglang.views.score import Scoring
from laprox_sglang.views.view import View
from memory import Peak
from test_gpu_arguments import LLAMA, POOL, server_args

LAYERS, HEADS, GROUP, DIM, HIDDEN, WINDOW, TOKENS = 3, 4, 2, 8, 12, 4, 120
PLAN = Plan(0, TOKENS, 30, 2, WINDOW, None)
# Two heads a rank; one; and two ranks that hold the same one, each for one of its query heads.
SIZES = (2, 4, 8)


class Group:
    """Ranks in threads of one process."""

    def __init__(self, size: int) -> None:
        self.given: list[torch.Tensor | None] = [None] * size
        self.sums = 0
        self._all_here = Barrier(size, timeout=60)

    def rank(self, index: int) -> Ranks:
        def add_up(tensor: torch.Tensor) -> torch.Tensor:
            self.given[index] = tensor.clone()
            # What SGLang is given afterwards holds the sum on some devices only.
            tensor.fill_(-1)
            self._all_here.wait()
            whole = torch.stack([part for part in self.given if part is not None]).sum(dim=0)
            self._all_here.wait()
            self.sums += index == 0
            return whole

        return Ranks(len(self.given), index, add_up)


class Attention(torch.nn.Module):
    """A rank's part of one: its heads, and the columns of W_O that read them."""

    def __init__(self, layer: int, weight: torch.Tensor, heads: int, group: int) -> None:
        super().__init__()
        self.attn = RadixAttention(heads * group, DIM, DIM**-0.5, num_kv_heads=heads, layer_id=layer)
        self.o_proj = torch.nn.Linear(heads * group * DIM, HIDDEN, bias=False)
        self.o_proj.weight = torch.nn.Parameter(weight, requires_grad=False)


class Prompt:
    """One prompt, in the pool of a whole model and in those of its ranks."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        # Heads of very different size: a layer's sums differ from rank to rank, and from layer to layer.
        size = torch.logspace(0, 2, LAYERS * HEADS)[torch.randperm(LAYERS * HEADS)].view(LAYERS, HEADS, 1)
        self.queries = torch.randn((LAYERS, WINDOW, HEADS * GROUP, DIM))
        self.keys = torch.randn((TOKENS + 1, LAYERS, HEADS, DIM))
        self.values = torch.randn((TOKENS + 1, LAYERS, HEADS, DIM)) * size
        self.weights = torch.randn((LAYERS, HIDDEN, HEADS * GROUP * DIM))

    def part(
        self, index: int, size: int
    ) -> tuple[list[ScoredLayer], torch.Tensor, torch.Tensor, torch.Tensor]:
        """Layers, keys, values and queries of a rank, whose heads SGLang deals out in their order."""
        heads = max(1, HEADS // size)
        first = index * HEADS // size
        group = HEADS * GROUP // size // heads
        queries = slice(index * heads * group, (index + 1) * heads * group)
        channels = slice(queries.start * DIM, queries.stop * DIM)
        model = torch.nn.Sequential(
            *(Attention(i, self.weights[i][:, channels], heads, group) for i in range(LAYERS))
        )
        pool = (x[:, :, first : first + heads].contiguous() for x in (self.keys, self.values))
        return scored_layers(model), *pool, self.queries[:, :, queries].contiguous()

    def view(self, config: Config, index: int, ranks: Ranks) -> View:
        """What a rank keeps."""
        layers, keys, values, queries = self.part(index, ranks.size)
        table = torch.arange(TOKENS + 1, dtype=torch.int32).roll(-1).view(1, -1)
        pruner = Pruner(config, layers, keys, values, table, TOKENS, ranks)
        slots = torch.arange(1, PLAN.least + 1)
        view = pruner.make_view(PLAN, 0, queries, slots, True, True)
        view.check_integrity(table[0])
        return view

    def views(self, config: Config, group: "Group") -> list[View]:
        size = len(group.given)
        with ThreadPoolExecutor(size) as threads:
            return list(threads.map(lambda i: self.view(config, i, group.rank(i)), range(size)))

    def scores(self, config: Config, size: int) -> torch.Tensor:
        """Of all ranks: ``[size, L, h, P]``; +inf where a head keeps a cell in any case."""
        found = torch.empty((size, LAYERS, max(1, HEADS // size), TOKENS))
        row = torch.arange(1, TOKENS + 1)
        alike = msgspec.structs.replace(config, allocator="layer")
        for index in range(size):
            layers, keys, values, queries = self.part(index, size)
            Scoring(alike, layers, keys, values, ONE_RANK).run(queries, row, PLAN, found[index])
        if config.allocator == "model":
            whole = found.masked_fill(found == torch.inf, 0).sum(dim=(0, 2, 3))
            found /= whole[None, :, None, None]
        return found


def cells_of(view: View, size: int) -> torch.Tensor:
    """What a view says all ranks keep: bool ``[size, L, h, P]``."""
    assert view.positions is not None
    *offsets, tokens = view.host_counts.tolist()
    kept = torch.zeros((LAYERS * view.heads, TOKENS), dtype=torch.bool)
    positions = torch.tensor(view.positions.tolist())
    for head, (first, last) in enumerate(pairwise(offsets)):
        kept[head, positions[first:last]] = True
    assert kept.sum() == offsets[-1] == view.kept_cells and kept.any(0).sum() == tokens
    return kept.view(LAYERS, size, -1, TOKENS).transpose(0, 1)


@pytest.mark.parametrize("scorer", ["laprox", "laprox-joint"])
@pytest.mark.parametrize("allocator", ["model", "layer", "uniform"])
@pytest.mark.parametrize("size", SIZES)
def test_ranks_keep_what_a_choice_among_all_their_heads_keeps(scorer, allocator, size, seed):
    """``layer``: by places among all of a layer. The others: by scores."""
    config = Config(scorer=scorer, allocator=allocator, window=WINDOW, sink_tokens=PLAN.sinks, min_tokens=60)
    prompt, group = Prompt(seed), Group(size)
    views = prompt.views(config, group)
    found = cells_of(views[0], size)
    for index, view in enumerate(views):
        assert torch.equal(cells_of(view, size), found), "all ranks are told the same"
        lengths = found[index].sum(-1).flatten()
        assert torch.equal(view.cu_cells.diff(), lengths), "and read their own"
        assert lengths.sum() == PLAN.least * len(lengths), "as many as their slots have room for"
        assert allocator != "uniform" or (lengths == PLAN.least).all()
    held = floor_cells(PLAN.least, PLAN.protected, config.method.allocation.floor)
    check_choice(found, prompt.scores(config, size), allocator == "layer", held)
    # Scores of layers: a sum, or counts; then what is told: how many, and which.
    assert group.sums == {"model": 3, "layer": 3, "uniform": 2}[allocator]


@pytest.mark.parametrize("kind", ["alike", "negative", "zeros", "infinite", "nan"])
def test_ranks_with_the_same_scores_keep_what_they_would_alone(kind, seed):
    torch.manual_seed(seed)
    scores = torch.randn((LAYERS, HEADS, TOKENS)).exp() * torch.logspace(-20, 20, LAYERS)[:, None, None]
    if kind == "negative":
        scores = scores.neg()
    elif kind == "zeros":
        scores[:, :, ::2] = 0
    elif kind == "infinite":
        scores[:, 0, :20] = torch.inf
    elif kind == "nan":
        scores[:, 1] = torch.nan
    allocation, group = Config(allocator="layer").method.allocation, Group(2)

    def kept(index: int) -> torch.Tensor:
        return keep(scores.clone(), PLAN.least, allocation, 0, ranks=group.rank(index))[0]

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(kept, range(2))
    assert torch.equal(first, second)
    found = torch.zeros_like(scores, dtype=torch.bool)
    found.view(-1)[first] = True
    kernels.floor(scores, floor_cells(PLAN.least, 0, allocation.floor))
    check_choice(found.expand(2, *found.shape), scores.expand(2, *found.shape), by_place=True, rounding=0)


def test_the_memory_of_placing_is_what_is_set_aside(seed):
    torch.manual_seed(seed)
    for layers, tokens in ((2, 2000), (40, 30_000)):
        scores = torch.randn((layers, 2, tokens))
        with Peak() as memory:
            kernels.place(scores, kernels.count_scores(scores))
        assert memory.peak <= kernels.placing_bytes(layers, 2 * tokens)


def test_ranks_that_differ_are_found(on_rank):
    """What the busy check of SGLang brings with it: each rank shows all what it holds."""
    rows = torch.arange(20, dtype=torch.int32).view(2, 10)
    kv = SimpleNamespace(req_pool_idx=1, kv_allocated_len=4)
    checker: Any = SimpleNamespace(
        req_to_token_pool=SimpleNamespace(req_to_token=rows),
        token_to_kv_pool_allocator=SimpleNamespace(available_size=lambda: 5),
        tree_cache=SimpleNamespace(evictable_size=lambda: 3, protected_size=lambda: 0),
        _requests_owning_rows=lambda: [SimpleNamespace(rid="a", kv=kv, laprox=None)],
    )
    shown: list[Any] = []

    def everybody(found: list[Any], held: Any, group: Any) -> None:
        shown.append(held)
        found[:] = [shown[0], held]

    with pytest.MonkeyPatch.context() as patch, on_rank(2, 1):
        patch.setattr(torch.distributed, "all_gather_object", everybody)
        compare_ranks(None, checker)
        compare_ranks(None, checker)
        rows[1, 2] = 7
        with pytest.raises(AssertionError, match=r"rank 1 holds .*, and rank 0"):
            compare_ranks(None, checker)
        rows[1, 2] = 12
        compare_ranks(None, checker)
        checker.tree_cache.evictable_size = lambda: 4
        with pytest.raises(AssertionError):
            compare_ranks(None, checker)


@pytest.fixture
def on_rank() -> Iterator[Callable[[int, int], Any]]:
    """The process of a rank, as SGLang describes it."""

    def enter(size: int, index: int) -> Any:
        added_up = SimpleNamespace(world_size=size, cpu_group=None, all_reduce=lambda tensor: size * tensor)
        return get_parallel().override(
            tp_size=size, tp_rank=index, attn_tp_size=size, attn_tp_rank=index, attn_tp_group=added_up
        )

    yield enter


@pytest.mark.parametrize("size", [2, 4])
def test_a_process_of_sglang_knows_its_rank(on_rank, size):
    given = torch.ones(3)
    with on_rank(size, size - 1):
        ranks = ranks_here()
    assert (ranks.size, ranks.index, ranks.sum(given).tolist()) == (size, size - 1, [size] * 3)


def test_one_rank_adds_nothing_up():
    """Neither is SGLang asked for a group, which a process of one rank may not have."""
    given = torch.ones(3)
    with get_parallel().override(attn_tp_size=1):
        assert ranks_here() is ONE_RANK and ONE_RANK.sum(given) is given


# Eight KV heads: the last has more ranks than those.
@pytest.mark.parametrize("size", [1, 2, 8, 16])
def test_every_rank_leaves_the_same_room_and_its_share_alone(on_rank, size):
    args: Any = server_args(_laprox=Config(scorer="snapkv"))
    model: Any = SimpleNamespace(**vars(LLAMA) | {"get_num_kv_heads": lambda ranks: max(1, 8 // ranks)})
    builder: Any = SimpleNamespace(server_args=args, model_config=model, kv_cache_dtype=torch.bfloat16)
    left = set()
    for index in range(size):
        with on_rank(size, index):
            left.add(memory_pool.leave_room(POOL // size, builder, 0))
    parts = needs(args._laprox, model, size, args, Itemsizes(2, 2), POOL // size)
    assert left == {POOL // size - sum(parts.values())}
    assert heads_of_rank(model, size) == (32 // size, max(1, 8 // size))
    alone = needs(args._laprox, model, 1, args, Itemsizes(2, 2), POOL)
    for what in ("Gram matrices", "window queries", "scores"):
        print(f"{what}: {parts[what] / 1e6:.1f} MB on each of {size}, {alone[what] / 1e6:.1f} on one")
    assert parts["window queries"] * size == alone["window queries"]
    assert size == 1 or sum(parts.values()) < sum(alone.values())
