"""Ranks that share the heads of a model's layers, each with its part of the pool and of W_O."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.runtime_context import get_parallel

from laprox_patches.model import memory_pool
from laprox_patches.model.ranks import ranks_here
from laprox_sglang.layers import ScoredLayer
from laprox_sglang.options.server import Config
from laprox_sglang.ranks import ONE_RANK, Ranks, heads_of_rank
from laprox_sglang.scorers.allocators import keep
from laprox_sglang.served_model import scored_layers
from laprox_sglang.views.memory import Itemsizes, needs
from laprox_sglang.views.plan import Plan
from laprox_sglang.views.prune import Pruner
from laprox_sglang.views.score import Scoring
from laprox_sglang.views.view import View
from test_gpu_arguments import LLAMA, POOL, server_args

LAYERS, HEADS, GROUP, DIM, HIDDEN, WINDOW, TOKENS, SIZE = 3, 4, 2, 8, 12, 4, 120, 2
PLAN = Plan(0, TOKENS, 30, 2, WINDOW, None)


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

    def __init__(self, layer: int, weight: torch.Tensor, heads: int) -> None:
        super().__init__()
        self.attn = RadixAttention(heads * GROUP, DIM, DIM**-0.5, num_kv_heads=heads, layer_id=layer)
        self.o_proj = torch.nn.Linear(heads * GROUP * DIM, HIDDEN, bias=False)
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

    def part(self, heads: slice) -> tuple[list[ScoredLayer], torch.Tensor, torch.Tensor, torch.Tensor]:
        """Layers, keys, values and queries of these KV heads."""
        chosen = range(HEADS)[heads]
        queries = slice(chosen.start * GROUP, chosen.stop * GROUP)
        channels = slice(queries.start * DIM, queries.stop * DIM)
        model = torch.nn.Sequential(
            *(Attention(i, self.weights[i][:, channels], len(chosen)) for i in range(LAYERS))
        )
        pool = (x[:, :, heads].contiguous() for x in (self.keys, self.values))
        return scored_layers(model), *pool, self.queries[:, :, queries].contiguous()

    def view(self, config: Config, heads: slice, ranks: Ranks) -> View:
        """What a rank with these heads keeps."""
        layers, keys, values, queries = self.part(heads)
        table = torch.arange(TOKENS + 1, dtype=torch.int32).roll(-1).view(1, -1)
        pruner = Pruner(config, layers, keys, values, table, TOKENS, ranks)
        slots = torch.arange(1, PLAN.slots + 1)
        return pruner.make_view(PLAN, 0, queries, slots, True, True)


def heads_of(index: int) -> slice:
    return slice(index * HEADS // SIZE, (index + 1) * HEADS // SIZE)


def cells(view: View) -> torch.Tensor:
    """What a view keeps, as indices into the scores of its rank."""
    assert view.positions is not None
    lengths = view.cu_cells.diff()
    at = torch.tensor(view.positions.tolist())
    return torch.arange(len(lengths)).repeat_interleave(lengths) * TOKENS + at


@pytest.mark.parametrize("scorer", ["laprox", "laprox-joint"])
@pytest.mark.parametrize("allocator", ["model", "layer", "uniform"])
def test_every_rank_keeps_what_one_rank_would_keep_of_its_heads(scorer, allocator, seed):
    config = Config(scorer=scorer, allocator=allocator, window=WINDOW, sink_tokens=PLAN.sinks, min_tokens=60)
    prompt, group = Prompt(seed), Group(SIZE)
    layers, keys, values, queries = prompt.part(slice(None))
    scores = torch.empty((LAYERS, HEADS, TOKENS))
    row = torch.arange(1, TOKENS + 1)
    Scoring(config, layers, keys, values, ONE_RANK).run(queries, row, PLAN, scores)
    with ThreadPoolExecutor(SIZE) as threads:
        views = threads.map(
            lambda index: prompt.view(config, heads_of(index), group.rank(index)), range(SIZE)
        )
        for index, view in enumerate(views):
            own = scores[:, heads_of(index)].contiguous()
            expected, _ = keep(own.clone(), PLAN.slots, config.method.allocation, PLAN.protected)
            kept = cells(view)
            assert len(kept) == PLAN.slots * LAYERS * HEADS // SIZE
            # Another order of adding may swap two cells that are nearly equal, and no others.
            by_score = [own.flatten()[chosen].sort().values for chosen in (kept, expected)]
            torch.testing.assert_close(*by_score, rtol=1e-5, atol=0)
            assert len(set(kept.tolist()) ^ set(expected.tolist())) <= 4
    # Sums of layers matter where layers are compared, and cost nothing elsewhere.
    assert group.sums == (allocator == "model")


@pytest.fixture
def on_rank() -> Iterator[Callable[[int, int], Any]]:
    """The process of a rank, as SGLang describes it."""

    def enter(size: int, index: int) -> Any:
        added_up = SimpleNamespace(world_size=size, all_reduce=lambda tensor: size * tensor)
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
