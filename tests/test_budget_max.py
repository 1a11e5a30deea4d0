"""One budget over all running requests: views have more while there is room, and give it back to others."""

import weakref
from types import SimpleNamespace

import pytest
import torch
from msgspec.structs import replace

from fakes import CELLS, CONFIG, DIM, LAYERS, QUERY_HEADS, Scheduler, sglang_context
from laprox_patches.scheduler.metrics import pool_of
from laprox_patches.scheduler.output import facts_to_send
from laprox_sglang.options.server import Config
from laprox_sglang.report.events import Shrunk
from laprox_sglang.report.metrics import METRICS, Seen
from laprox_sglang.views.memory import needs
from laprox_sglang.views.state import view_of
from laprox_sglang.warmup import compile_kernels
from test_gpu_arguments import BF16, LLAMA, POOL, server_args
from test_memory_properties import check
from test_runtime import (
    EVERY_CORE,
    EVERY_LOOP,
    OTHER,
    PROMPT,
    N,
    kept,
    kept_alone,
    pinned,
    prefill,
    steps,
)

LEAST, MOST = 0.2, 0.8
ELASTIC = replace(CONFIG, budget=LEAST, budget_max=MOST)
FEW, MANY = int(LEAST * N), int(MOST * N)


@pytest.fixture(autouse=True)
def sglang():
    with sglang_context():
        yield


def alone(slots: int) -> tuple[list[int], list[int]]:
    """What a server would keep whose budget is so many slots."""
    return kept_alone(config=replace(CONFIG, budget=slots))


def answers(scheduler: Scheduler, number: int, tokens: int) -> list:
    """So many different prompts, and what became of them."""
    prompts = [PROMPT[i:] + OTHER[:i] for i in range(number)]
    reqs = [scheduler.arrive(prompt, tokens) for prompt in prompts]
    while not scheduler.idle():
        steps(scheduler, 1)
    assert all(len(req.output_ids) == tokens for req in reqs)
    return reqs


@EVERY_CORE
@EVERY_LOOP
def test_with_room_a_view_has_all_that_it_may(tree, overlap):
    scheduler = Scheduler(300, config=ELASTIC, tree=tree, overlap=overlap)
    req = scheduler.arrive(PROMPT, 5)
    prefill(scheduler)
    view, cache = view_of(req), scheduler.tree_cache
    assert view.slots == MANY and view.surplus == MANY - FEW and kept(req) == alone(MANY)
    # Others can have what it holds beyond its guarantee.
    assert cache.evictable_size() == N + view.surplus and pinned(scheduler) == FEW
    cache.check_integrity()
    totals = scheduler.laprox.report.totals
    assert (totals.view_slots, totals.surplus_slots) == (MANY, view.surplus)
    steps(scheduler, 2)
    scheduler.run_until_idle()
    assert pinned(scheduler) == totals.surplus_slots == totals.shrinks == 0
    assert cache.evictable_size() == N


@EVERY_CORE
@EVERY_LOOP
def test_a_view_that_shrinks_while_it_is_read_is_that_of_the_smaller_budget(tree, overlap):
    scheduler = Scheduler(100, config=ELASTIC, tree=tree, overlap=overlap)
    req = scheduler.arrive(PROMPT, 12)
    prefill(scheduler)
    cache, sizes = scheduler.tree_cache, []
    while (view := view_of(req)).surplus:
        steps(scheduler, 1)
        slots = max(FEW, view.slots - 7)
        before, asked = cache.free_slots(), len(scheduler.stream.asked)
        cache.exchange(req, cache.shrink_view(req, slots), view.own[slots:])
        sizes.append(slots)
        assert scheduler.stream.asked[asked:] == ["behind"], "packed while a step may read it"
        # It was everybody's before.
        assert cache.free_slots() == before
        check(scheduler)
        assert kept(req) == alone(slots)
    assert sizes[-1] == FEW and len(sizes) > 2
    steps(scheduler, 2)
    scheduler.run_until_idle()
    check(scheduler)
    (said,) = facts_to_send(scheduler.laprox.report, req)
    assert (said["slots_first"], said["slots_after"], said["slots_least"]) == (sizes[0] + 7, FEW, FEW)
    assert said["shrinks"] == len(sizes) and said["kept_share"] == said["budget_effective"] == LEAST
    # Of its tokens, by the positions that are left.
    assert said["erased_share"] == 1 - len(set(alone(FEW)[0])) / N
    totals = scheduler.laprox.report.totals
    assert totals.shrinks == len(sizes) and totals.shrunk_slots == sizes[0] + 7 - FEW


@EVERY_CORE
@EVERY_LOOP
def test_nobody_is_retracted_while_others_have_more_than_their_guarantee(tree, overlap):
    """A pool for four at the guarantee, with their answers; at the most it does not hold three."""
    retracted, shrinks = {}, {}
    for budget, most in ((MOST, MOST), (LEAST, MOST), (LEAST, LEAST)):
        config = replace(CONFIG, budget=budget, budget_max=most)
        scheduler = Scheduler(145, config=config, tree=tree, overlap=overlap)
        # SGLang expects shorter answers than there are: it lets in whom it retracts later.
        ratio = scheduler.new_token_ratio_tracker
        ratio.init = ratio.min = ratio.current = 0.1
        reqs = answers(scheduler, 4, 22)
        totals = scheduler.laprox.report.totals
        retracted[budget, most] = totals.released["retracted"]
        shrinks[budget, most] = totals.shrinks
        assert pinned(scheduler) == 0 and totals.released["finished"] == len(reqs)
    assert retracted[MOST, MOST] > 0 == retracted[LEAST, MOST] == retracted[LEAST, LEAST]
    assert shrinks[LEAST, MOST] > 0 == shrinks[LEAST, LEAST] == shrinks[MOST, MOST]


def test_a_full_pool_gives_a_new_view_its_guarantee():
    scheduler = Scheduler(105, config=ELASTIC, rows=8)
    whole = scheduler.arrive(OTHER, 9, enabled=False)
    prefill(scheduler)
    req = scheduler.arrive(PROMPT, 9)
    prefill(scheduler)
    # 40 of 105 slots are somebody's for good: this one has a part of what it may have.
    assert FEW < view_of(req).slots < MANY and kept(req) == alone(view_of(req).slots)
    scheduler.run_until_idle()
    assert whole.finished() and pinned(scheduler) == 0


def test_a_request_that_asks_for_no_more_than_its_guarantee_never_shrinks():
    scheduler = Scheduler(300, config=ELASTIC)
    req = scheduler.arrive(PROMPT, 9, budget=LEAST)
    other = scheduler.arrive(PROMPT, 9, budget=0.5)
    prefill(scheduler)
    assert view_of(req).elastic is None and kept(req) == alone(FEW)
    assert view_of(other).slots == 20 and view_of(other).surplus == 20 - FEW
    scheduler.tree_cache._shrink(10**6)
    assert kept(req) == kept(other) == alone(FEW)
    scheduler.run_until_idle()


def test_a_view_whose_figures_are_still_on_their_way_gives_last(monkeypatch):
    scheduler = Scheduler(300, config=ELASTIC)
    reqs = [scheduler.arrive(prompt, 9) for prompt in (PROMPT, OTHER)]
    prefill(scheduler)
    copy = view_of(reqs[0]).elastic.carried
    monkeypatch.setattr(type(copy), "there", property(lambda self: self is not copy))
    scheduler.tree_cache._shrink(1)
    assert [view_of(req).slots for req in reqs] == [MANY - 8, FEW]
    monkeypatch.undo()
    scheduler.run_until_idle()


@pytest.mark.parametrize("allocator", ["layer", "model", "uniform"])
def test_what_a_gpu_compiles_at_the_start_runs(allocator):
    config = replace(ELASTIC, allocator=allocator)
    scheduler = Scheduler(100, config=config)
    laprox, pool = scheduler.laprox, scheduler.pool
    queries = torch.zeros((LAYERS, config.window, QUERY_HEADS, DIM))
    compile_kernels(config, laprox.pruner, laprox.decode, pool.keys, pool.values, queries, laprox.ranks)
    req = scheduler.arrive(PROMPT, 3)
    prefill(scheduler)
    assert kept(req) == kept_alone(config=replace(CONFIG, allocator=allocator, budget=view_of(req).slots))
    scheduler.run_until_idle()


def test_what_was_known_of_a_view_is_gone_with_it():
    """Else two sets of scores would be held at once, and there is memory for one."""
    scheduler = Scheduler(300, config=ELASTIC)
    req = scheduler.arrive(PROMPT, 9)
    prefill(scheduler)
    steps(scheduler, 2)
    scheduler.decoded = []
    scores = weakref.ref(view_of(req).elastic.scores)
    scheduler.tree_cache._shrink(1)
    assert scores() is None and view_of(req).elastic.scores.numel() == view_of(req).slots * CELLS
    scheduler.run_until_idle()


def test_memory_for_what_views_know_is_set_aside():
    given = LLAMA, 1, server_args(), BF16, POOL
    fixed = needs(Config(budget=0.3), *given)
    elastic = needs(Config(budget=0.05, budget_max=0.3), *given)
    # A score and a position beside 512 bytes of K and V.
    assert elastic.pop("kept scores") == POOL // (2 * 128 * 2) * 8
    # A floor is marked beside them.
    assert elastic.pop("scores") == fixed.pop("scores") + 4 * 256 * 32768
    assert elastic == fixed
    ranked = needs(Config(budget=0.05, budget_max=0.3, allocator="model"), *given)
    assert ranked["scores"] == needs(Config(budget=0.3, allocator="model"), *given)["scores"]


def test_metrics_and_events_tell_of_shrinks():
    scheduler, heard = Scheduler(300, config=ELASTIC), []
    report = scheduler.laprox.report
    report.events = SimpleNamespace(publish=lambda kind, rid, **said: heard.append((kind, rid, said)))
    req = scheduler.arrive(PROMPT, 9)
    prefill(scheduler)
    seen = Seen(report, pool_of(scheduler), {}, 1, LAYERS)
    read = {metric.name: metric.read for metric in METRICS}
    assert read["laprox_surplus_slots"](seen) == {(): MANY - FEW}
    scheduler.tree_cache._shrink(1)
    assert heard[-1] == (Shrunk, req.rid, {"slots": MANY - 16, "freed": 16})
    assert read["laprox_surplus_slots"](seen) == {(): MANY - FEW - 16}
    assert read["laprox_shrinks_total"](seen) == {(): 1} and read["laprox_shrunk_slots_total"](seen) == {
        (): 16
    }
    assert scheduler.laprox.pruner.stages.seconds()["shrink"] > 0
    scheduler.run_until_idle()
