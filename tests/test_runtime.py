"""The runtime between a real pool, allocator and cache: what it keeps, what it frees, what it reads."""

from array import array
from dataclasses import replace as replace_outcome
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from msgspec.structs import replace
from sglang.srt.environ import envs
from sglang.srt.managers.schedule_batch import ForwardMode
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixKey

import fakes
from fakes import (
    CELLS,
    CONFIG,
    DIM,
    LAYERS,
    QUERY_HEADS,
    TREES,
    Scheduler,
    expected_output,
    sglang_context,
)
from laprox_patches.scheduler import weights
from laprox_patches.scheduler.leak_check import without_spared
from laprox_patches.scheduler.output import add_facts
from laprox_patches.scheduler.step import run_batch
from laprox_sglang.cache.pool import LaproxKVPool
from laprox_sglang.cache.tree import without
from laprox_sglang.options.server import POOLING_KERNEL
from laprox_sglang.scorers import SCORERS
from laprox_sglang.served_model import find_layers
from laprox_sglang.views.state import view_of
from laprox_sglang.views.view import HostCopy
from laprox_sglang.warmup import compile_kernels
from test_memory_properties import check

PROMPT = [(i * i + i // 3) % 4 for i in range(40)]
OTHER = PROMPT[::-1]
N, W = len(PROMPT), CONFIG.window
KEEP = 12
KEEPING = replace(CONFIG, keep_prefix=KEEP)
# A prompt that fills most of a pool of 26 slots.
BODY = [1, 2, 0, 3] * 4 + [2, 2]
CORES = [tree for tree in TREES if tree != "off"]
EVERY_CORE = pytest.mark.parametrize("tree", CORES)
EVERY_CACHE = pytest.mark.parametrize("tree", TREES)
EVERY_LOOP = pytest.mark.parametrize("overlap", [False, True], ids=["sync", "overlap"])


@pytest.fixture(autouse=True)
def sglang():
    with sglang_context():
        yield


def available(scheduler: Scheduler) -> int:
    return scheduler.token_to_kv_pool_allocator.available_size()


def pinned(scheduler: Scheduler) -> int:
    """Slots that nobody else can have."""
    return scheduler.pool.size - available(scheduler) - scheduler.tree_cache.evictable_size()


def in_tree(scheduler: Scheduler) -> int:
    return scheduler.tree_cache.total_size()[0]


def evict(scheduler: Scheduler, tokens: int) -> None:
    scheduler.tree_cache.evict(EvictParams(num_tokens=tokens))


def hit(scheduler: Scheduler, tokens: list[int]) -> int:
    """How much of a prompt the prefix cache holds."""
    key = RadixKey(array("q", tokens))
    return scheduler.tree_cache.match_prefix(MatchPrefixParams(key=key)).device_prefix_len


def prefill(scheduler: Scheduler, chunk_size: int = 1024) -> None:
    """Steps until nobody waits and no prompt is half done; the prompts are pruned, nothing is decoded."""
    while scheduler.waiting_queue or scheduler.chunked_req:
        scheduler.step(chunk_size)
        check(scheduler)


def steps(scheduler: Scheduler, number: int) -> None:
    for _ in range(number):
        scheduler.step()
        check(scheduler)
        check_decoded(scheduler)


def check_decoded(scheduler: Scheduler) -> None:
    for req, view, tokens, output in scheduler.decoded:
        expected = expected_output(view, tokens, req.rid)
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)


def kept(req) -> tuple[list[int], list[int]]:
    view = view_of(req)
    return view.positions.tolist(), view.cu_cells.tolist()


def kept_alone(tokens=PROMPT, config=CONFIG, **options) -> tuple[list[int], list[int]]:
    """What is kept of a prompt that nobody else had a part in."""
    scheduler = Scheduler(200, config=config)
    req = scheduler.arrive(tokens, **options)
    prefill(scheduler)
    return kept(req)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, min_tokens=2, window=1, sink_tokens=0),
        replace(CONFIG, scorer="criticalkv", pooling_kernel=POOLING_KERNEL),
        replace(CONFIG, allocator="model", floor=0.0),
        replace(CONFIG, floor=0.5),
    ],
)
def test_what_a_gpu_compiles_at_the_start_runs(config):
    scheduler = Scheduler(100, config=config)
    laprox, pool = scheduler.laprox, scheduler.pool
    queries = torch.zeros((LAYERS, config.window, QUERY_HEADS, DIM))
    compile_kernels(config, laprox.pruner, laprox.decode, pool.keys, pool.values, queries, laprox.ranks)
    prompts = [scheduler.arrive(PROMPT, 3) for _ in range(2)]
    prefill(scheduler)
    assert [kept(req) for req in prompts] == [kept_alone(config=config)] * 2


@pytest.mark.parametrize("scorer", ["laprox", "laprox-joint"])
def test_a_layer_s_number_is_not_its_place_in_the_pool(scorer, monkeypatch):
    """A stage of a pipeline: SGLang's layers 3 and 4 are the first two of this pool. No server has it yet."""
    config = replace(CONFIG, scorer=scorer)
    expected = kept_alone(config=config)
    attention = fakes.Attention
    monkeypatch.setattr(fakes, "Attention", lambda layer: attention(3 + layer))
    monkeypatch.setattr(fakes, "LaproxKVPool", partial(LaproxKVPool, start_layer=3))
    monkeypatch.setattr(fakes, "scored_layers", find_layers)
    scheduler = Scheduler(100, config=config)
    req = scheduler.arrive(PROMPT, 4)
    prefill(scheduler)
    assert kept(req) == expected
    steps(scheduler, 2)
    assert scheduler.decoded


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("allocator", ["layer", "uniform"])
def test_every_scorer_prunes_and_frees(scorer, allocator):
    """By the torch path, in chunks, with a prefix that stays dense, over slots that are read meanwhile."""
    config = replace(KEEPING, scorer=scorer, allocator=allocator, pooling_kernel=POOLING_KERNEL)
    scheduler = Scheduler(38, config=config)
    req = scheduler.arrive(PROMPT[:30], 4)
    prefill(scheduler, 13)
    view = view_of(req)
    assert pinned(scheduler) == KEEP + view.slots
    counts = view.cu_cells.diff().view(LAYERS, -1)
    assert (counts.sum(dim=1) == view.slots * counts.shape[1]).all()
    assert allocator == "layer" or (counts == view.slots).all()
    assert kept(req) == kept_alone(PROMPT[:30], config, max_new_tokens=4)
    steps(scheduler, 2)
    scheduler.run_until_idle()
    assert pinned(scheduler) == 0


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("allocator", ["model", "layer", "uniform"])
def test_instructions_behind_other_messages_are_kept_in_every_layer_and_head(scorer, allocator):
    """With any scorer, however little it thinks of them, and again after a retraction."""
    config = replace(CONFIG, scorer=scorer, allocator=allocator, pooling_kernel=POOLING_KERNEL)
    spans = ((11, 19), (30, 32))
    instructions = {i for a, b in spans for i in range(a, b)}
    scheduler = Scheduler(100, config=config)
    req = scheduler.arrive(PROMPT, 9, instructions={"spans": spans})
    other = scheduler.arrive(PROMPT, 9)
    prefill(scheduler, 13)
    assert view_of(req).slots == view_of(other).slots == 16

    def cells(req) -> list[set[int]]:
        positions, cu_cells = kept(req)
        return [{*positions[a:b]} for a, b in pairwise(cu_cells)]

    assert len(cells(req)) == CELLS and all(instructions <= cell for cell in cells(req))
    # They are not what would have been kept anyway.
    assert not all(instructions <= cell for cell in cells(other))
    steps(scheduler, 3)
    check(scheduler)
    scheduler.retract_everything()
    while view_of(req) is None:
        scheduler.step()
    assert view_of(req).end > N and all(instructions <= cell for cell in cells(req))
    scheduler.run_until_idle()
    check(scheduler)


# What a pruned request holds.


@EVERY_CACHE
@EVERY_LOOP
@pytest.mark.parametrize("budget", [0.2, 0.4, 17, 27 / 28])
@pytest.mark.parametrize("keep", [0, KEEP])
def test_a_pruned_request_pins_its_prefix_its_view_and_its_tail(tree, overlap, budget, keep):
    config = replace(CONFIG, budget=budget, keep_prefix=keep)
    scheduler = Scheduler(100, config=config, tree=tree, overlap=overlap)
    req, cache = scheduler.arrive(PROMPT), scheduler.tree_cache
    prefill(scheduler)
    view, whole = view_of(req), tree != "off"
    assert (view.start, view.end) == (keep, N) and view.slots == req.laprox.plan.least < N - keep
    for tail in range(3):
        assert pinned(scheduler) == keep + view.slots + tail
        # All else of the prompt is ordinary cache, beside which the view has slots of its own.
        assert cache.protected_size() == whole * keep
        assert cache.evictable_size() == whole * (N - keep)
        assert available(scheduler) == 100 - view.slots - tail - (N if whole else keep)
        steps(scheduler, 1)
    scheduler.run_until_idle()
    check(scheduler)
    assert req.laprox.view is None and pinned(scheduler) == 0
    # What was generated over the view is nowhere.
    assert (in_tree(scheduler), available(scheduler)) == (whole * N, 100 - whole * N)
    assert scheduler.laprox.report.totals.slots_freed == N - keep - view.slots


@EVERY_CORE
@EVERY_LOOP
@pytest.mark.parametrize("keep", [0, KEEP])
def test_what_a_view_stands_for_can_be_evicted_while_it_is_read(tree, overlap, keep):
    config = replace(CONFIG, keep_prefix=keep)
    scheduler = Scheduler(100, config=config, tree=tree, overlap=overlap)
    req = scheduler.arrive(PROMPT, 9)
    prefill(scheduler)
    steps(scheduler, 1)
    evict(scheduler, 100)
    assert in_tree(scheduler) == keep and view_of(req)
    # Others write into the slots that the view was packed from.
    scheduler.arrive(OTHER, 3, enabled=False)
    steps(scheduler, 4)
    assert len(req.output_ids) > 3
    scheduler.run_until_idle()
    # Gone is gone: nothing is put back at the end.
    assert hit(scheduler, PROMPT) == keep


@EVERY_CACHE
def test_columns_behind_the_view_are_zero_and_the_view_is_whole(tree):
    scheduler = Scheduler(100, config=KEEPING, tree=tree)
    req = scheduler.arrive(PROMPT)
    prefill(scheduler)
    row, view = scheduler.rows[req.kv.req_pool_idx], view_of(req)
    end = view.start + view.slots
    assert not row[end:N].any() and bool(row[:end].all())
    view.check_integrity(row)
    for column, slot in [(KEEP, 0), (end - 1, 0), (end, 7), (N - 1, 7), (KEEP + 1, int(row[KEEP]))]:
        broken = row.clone()
        broken[column] = slot
        with pytest.raises(AssertionError):
            view.check_integrity(broken)


@EVERY_CACHE
def test_the_cache_checks_itself(tree):
    scheduler = Scheduler(100, tree=tree)
    scheduler.arrive(PROMPT)
    scheduler.run_until_idle()
    cache = scheduler.tree_cache
    cache.check_integrity()
    if tree == "off":
        return
    with mock.patch.object(cache, "evictable_size", lambda: N - 1), pytest.raises(AssertionError):
        cache.check_integrity()


def test_ranges_without_a_gap():
    for start in range(6):
        for end in range(start, 6):
            ranges = without([(0, 2), (3, 5)], start, end)
            assert all(a < b for a, b in ranges)
            columns = [column for a, b in ranges for column in range(a, b)]
            assert columns == [column for column in (0, 1, 3, 4) if not start <= column < end]


# What the tree offers to the next.


@EVERY_CORE
@EVERY_LOOP
@pytest.mark.parametrize("chunk_size", [5, 1024])
@pytest.mark.parametrize("keep", [0, KEEP])
def test_the_next_turn_hits_the_whole_exact_history(tree, overlap, chunk_size, keep):
    config = replace(CONFIG, keep_prefix=keep)
    scheduler = Scheduler(200, config=config, tree=tree, overlap=overlap)
    prompt, history = PROMPT[:30], 0
    for question in [[], [3, 3, 1], [0], [2, 2, 2, 2]]:
        prompt = [*prompt, *question]
        req = scheduler.arrive(prompt, 5)
        prefill(scheduler, chunk_size)
        assert view_of(req).end == len(prompt)
        # Nothing of the answer is in it, and the answer and the question are more than a window.
        assert req.cached_tokens == history
        scheduler.run_until_idle(chunk_size)
        check(scheduler)
        assert in_tree(scheduler) == scheduler.tree_cache.evictable_size() == len(prompt)
        history = len(prompt)
        prompt += req.output_ids
        assert len(req.output_ids) == 5 and hit(scheduler, prompt) == history
    # Every turn is a first turn: what is kept is what a request that had never been here keeps.
    again = scheduler.arrive(prompt)
    prefill(scheduler)
    assert kept(again) == kept_alone(prompt, config)


@EVERY_CORE
@EVERY_LOOP
@pytest.mark.parametrize("more", [0, 1, 2, 3, 4])
def test_a_hit_leaves_the_window_to_compute(tree, overlap, more):
    scheduler = Scheduler(200, tree=tree, overlap=overlap)
    scheduler.arrive(PROMPT)
    scheduler.run_until_idle()
    req = scheduler.arrive(PROMPT + [2] * more)
    prefill(scheduler)
    assert req.cached_tokens == min(N, N + more - W)
    assert kept(req) == kept_alone(PROMPT + [2] * more)
    # What was computed again is not there twice.
    assert in_tree(scheduler) == N + more and pinned(scheduler) == view_of(req).slots


@EVERY_CORE
@pytest.mark.parametrize(
    ("new_tokens", "options", "reason"),
    [
        (4, {"enabled": False}, "disabled"),
        (1, {}, "no_decode"),
        (4, {"keep_prefix": N - 7}, "short"),
        (4, {"keep_prefix": N}, "short"),
        (4, {"budget": 1.0}, "within_budget"),
    ],
)
def test_a_prompt_that_stays_whole_is_stock(tree, new_tokens, options, reason):
    config = replace(CONFIG, budget=options.get("budget", CONFIG.budget))
    scheduler = Scheduler(200, config=config, tree=tree)
    for cached in (0, N - 1):
        req = scheduler.arrive(PROMPT, new_tokens, **options)
        prefill(scheduler)
        assert req.laprox.outcome.plan.reason == reason and view_of(req) is None
        # SGLang leaves one token for the logits.
        assert req.cached_tokens == cached
        if not req.finished():
            assert pinned(scheduler) == scheduler.tree_cache.protected_size() == N
        scheduler.run_until_idle()
        check(scheduler)
        # The last token was never fed back, so it has no KV.
        assert hit(scheduler, [*PROMPT, *req.output_ids]) == N + new_tokens - 1
    assert scheduler.laprox.report.totals.prunes == scheduler.laprox.report.totals.slots_freed == 0


@EVERY_LOOP
def test_a_request_that_is_kept_out_of_the_tree_stays_whole(overlap):
    scheduler = Scheduler(100, overlap=overlap)
    req = scheduler.arrive(PROMPT)
    req.skip_radix_cache_insert = True
    prefill(scheduler)
    assert req.laprox.outcome.plan.reason == "uncacheable" and view_of(req) is None
    scheduler.run_until_idle()
    assert available(scheduler) == 100 and in_tree(scheduler) == 0


# What is kept of a prompt is its own affair.


@EVERY_CACHE
@EVERY_LOOP
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 4, 5, 7, N - 1, N, 2048])
def test_the_same_cells_are_kept_whatever_the_chunks(tree, overlap, chunk_size):
    scheduler = Scheduler(100, tree=tree, overlap=overlap)
    req = scheduler.arrive(PROMPT)
    prefill(scheduler, chunk_size)
    assert kept(req) == kept_alone()
    assert req.laprox.queries is None, "the window outlives its use"


@EVERY_CACHE
@EVERY_LOOP
@pytest.mark.parametrize("keep", [0, KEEP])
def test_identical_prompts_are_pruned_alike(tree, overlap, keep):
    """Twins of one batch, which cannot hit each other, and those that come later and do."""
    config = replace(CONFIG, keep_prefix=keep)
    scheduler = Scheduler(200, config=config, tree=tree, overlap=overlap)
    reqs = [scheduler.arrive(PROMPT, 12) for _ in range(2)]
    prefill(scheduler)
    assert [req.cached_tokens for req in reqs] == [0, 0]
    reqs.append(scheduler.arrive(PROMPT, 12))
    prefill(scheduler)
    tail = pinned(scheduler)
    assert reqs[2].cached_tokens == (N - W if tree != "off" else 0)
    assert [kept(req) for req in reqs] == [kept_alone(config=config)] * 3
    slots = view_of(reqs[0]).slots
    if tree != "off":
        # The prompt is there once, and its prefix is pinned once.
        assert in_tree(scheduler) == N and scheduler.tree_cache.protected_size() == keep
        assert tail - keep - 3 * slots == sum(req.kv.kv_allocated_len - N for req in reqs)
    steps(scheduler, 2)
    scheduler.run_until_idle()
    assert pinned(scheduler) == 0


@EVERY_CORE
@EVERY_LOOP
def test_the_same_cells_are_kept_whoever_came_before(tree, overlap):
    scheduler = Scheduler(300, tree=tree, overlap=overlap)
    expected = kept_alone()
    for before in (PROMPT[:5], PROMPT[:20], PROMPT, [*PROMPT, 1], OTHER):
        for enabled in (True, False):
            scheduler.arrive(before, 2, enabled=enabled)
            scheduler.run_until_idle()
            req = scheduler.arrive(PROMPT)
            prefill(scheduler)
            assert kept(req) == expected
            scheduler.run_until_idle()
            evict(scheduler, 13)
            if before == PROMPT:
                # Nothing is left at all.
                evict(scheduler, 300)


@EVERY_CACHE
@pytest.mark.parametrize("chunk_size", [33, 1024])
def test_the_same_cells_are_kept_beside_other_requests(tree, chunk_size):
    scheduler = Scheduler(300, rows=8, tree=tree)
    short, other = scheduler.arrive([1, 1, 2], 9), scheduler.arrive(OTHER, 9)
    req = scheduler.arrive(PROMPT, 9)
    whole = scheduler.arrive([*PROMPT[:20], 2, 2, 1], 9, enabled=False)
    same = scheduler.arrive(PROMPT, 9, enabled=False)
    prefill(scheduler, chunk_size)
    assert kept(req) == kept_alone()
    assert view_of(other) and not any(view_of(each) for each in (short, whole, same))
    steps(scheduler, 2)


@EVERY_CACHE
def test_prompts_that_miss_what_is_there_are_pruned_alike(tree):
    """Logits of a whole prompt were asked for, say: all of it is computed again, and published again."""
    scheduler = Scheduler(300, tree=tree, config=KEEPING)
    scheduler.arrive(PROMPT, 20)
    prefill(scheduler)
    with envs.SGLANG_RADIX_FORCE_MISS.override(True):
        req = scheduler.arrive(PROMPT)
        prefill(scheduler)
    assert req.cached_tokens == 0 and kept(req) == kept_alone(config=KEEPING)
    if tree != "off":
        assert in_tree(scheduler) == N and scheduler.tree_cache.protected_size() == KEEP
    scheduler.run_until_idle()
    assert pinned(scheduler) == 0


@EVERY_CORE
@EVERY_LOOP
@pytest.mark.parametrize("first_keeps_all", [False, True])
def test_a_dense_prefix_that_ends_inside_a_node_that_others_hold(tree, overlap, first_keeps_all):
    scheduler = Scheduler(200, config=KEEPING, tree=tree, overlap=overlap)
    holder = scheduler.arrive(PROMPT, 20, enabled=not first_keeps_all, keep_prefix=20)
    prefill(scheduler)
    req = scheduler.arrive(PROMPT, 3)
    prefill(scheduler)
    locked = N if first_keeps_all else 20
    assert req.kv.cache_protected_len == KEEP and scheduler.tree_cache.protected_size() == locked
    assert kept(req) == kept_alone(config=KEEPING)
    steps(scheduler, 5)
    assert req.finished() and not holder.finished()
    assert scheduler.tree_cache.protected_size() == locked
    scheduler.run_until_idle()
    check(scheduler)
    assert pinned(scheduler) == 0


@EVERY_CORE
@pytest.mark.parametrize("name", ["extra_key", "cache_salt"])
@pytest.mark.parametrize("keep", [0, KEEP])
def test_namespaces_of_the_tree_stay_apart(tree, name, keep):
    scheduler = Scheduler(300, config=replace(CONFIG, keep_prefix=keep), tree=tree)
    expected = kept_alone(config=scheduler.laprox.config)
    reqs = [scheduler.arrive(PROMPT, 9) for _ in range(3)]
    for req, namespace in zip(reqs, ("a", "b", None), strict=True):
        setattr(req, name, namespace)
    scheduler.step()
    assert [req.cached_tokens for req in reqs] == [0] * 3 and [kept(req) for req in reqs] == [expected] * 3
    assert scheduler.tree_cache.protected_size() == 3 * keep and in_tree(scheduler) == 3 * N
    again = scheduler.arrive(PROMPT)
    setattr(again, name, "b")
    scheduler.step()
    assert again.cached_tokens == N - W and kept(again) == expected
    assert in_tree(scheduler) == 3 * N
    scheduler.run_until_idle()
    assert pinned(scheduler) == 0
    scheduler.tree_cache.check_integrity()


def nodes(scheduler: Scheduler) -> int:
    stack, number = [scheduler.tree_cache.tree_core.root_node], 0
    while stack:
        children = stack.pop().children.values()
        number += len(children)
        stack += children
    return number


@pytest.mark.parametrize("keep", [0, KEEP])
def test_caps_do_not_splinter_the_tree(keep):
    scheduler = Scheduler(300, config=replace(CONFIG, keep_prefix=keep), tree="python")
    numbers = []
    for i in range(6):
        scheduler.arrive(PROMPT, enabled=i != 3)
        scheduler.run_until_idle(7)
        if i != 3:
            numbers.append(nodes(scheduler))
    # Where the chunks ended, where the prefix ends, where the window begins; the opted-out one's answer.
    assert numbers[0] <= 2 + N // 7 + 1
    assert max(numbers) <= numbers[0] + 3 and numbers[2] == numbers[1] and numbers[4] == numbers[3]
    # A conversation: where each turn ends, and where its window begins.
    before, prompt = nodes(scheduler), list(PROMPT)
    for _ in range(4):
        req = scheduler.arrive(prompt, 3)
        scheduler.run_until_idle()
        prompt += [*req.output_ids, 1]
    assert nodes(scheduler) - before <= 2 * 4 + 1


# Room.


@EVERY_LOOP
def test_freed_slots_admit_who_waits(overlap):
    """One prompt nearly fills the pool; the next gets in as soon as the first is pruned."""
    scheduler = Scheduler(72, overlap=overlap)
    first, second = scheduler.arrive(PROMPT, 9), scheduler.arrive(OTHER, 9)
    full = []
    finish = scheduler.laprox.finish_prefill

    def spy(*args):
        full.append(scheduler.running_batch.batch_is_full)
        return finish(*args)

    scheduler.laprox.finish_prefill = spy
    scheduler.step()
    assert full == [True] and not scheduler.running_batch.batch_is_full
    assert view_of(first) is not None and view_of(second) is None
    scheduler.step()
    assert view_of(second) is not None and view_of(first) is not None, "both run at once"
    check(scheduler)


@EVERY_CORE
@EVERY_LOOP
@pytest.mark.parametrize(("size", "pruned"), [(26, False), (60, True)], ids=["no room", "room"])
def test_a_view_that_would_free_nothing_needs_room(tree, overlap, size, pruned):
    """Somebody else reads the same prompt whole."""
    scheduler = Scheduler(size + overlap, config=replace(CONFIG, budget=0.5), tree=tree, overlap=overlap)
    event = scheduler.tp_worker.last_shared_read_runner.shared_read_done_event = object()
    whole = scheduler.arrive(BODY, 2 + overlap, enabled=False)
    # With overlap its prompt enters the tree one step later.
    steps(scheduler, 1 + overlap)
    req = scheduler.arrive(BODY, 2)
    steps(scheduler, 1)
    assert view_of(whole) is None and not whole.finished()
    assert (req.laprox.outcome.plan.reason, view_of(req) is not None) == (
        (None, True) if pruned else ("no_room", False)
    )
    assert scheduler.laprox.report.totals.prunes == pruned
    if pruned:
        # It has cost what the view takes, and is said to.
        assert scheduler.laprox.report.totals.slots_freed == -view_of(req).slots
    else:
        assert req.laprox.outcome.plan.least == len(BODY) and req.laprox.queries is None
        assert req.kv.cache_protected_len == scheduler.tree_cache.protected_size() == len(BODY)
        assert scheduler.tp_worker.last_shared_read_runner.shared_read_done_event is event
    scheduler.run_until_idle()
    check(scheduler)
    assert pinned(scheduler) == 0 and len(req.output_ids) == 2
    assert hit(scheduler, [*BODY, *req.output_ids]) >= len(BODY) + (not pruned)


@EVERY_CORE
def test_a_view_that_would_free_nothing_leaves_a_prompt_in_chunks_its_room(tree):
    """The same once more, but what there is room for is promised to a prompt that comes in chunks."""
    reasons = []
    for rest in (0, 50):
        scheduler = Scheduler(60, config=replace(CONFIG, budget=0.5), tree=tree)
        scheduler.arrive(BODY, 9, enabled=False)
        steps(scheduler, 1)
        finish = scheduler.laprox.finish_prefill
        scheduler.laprox.finish_prefill = lambda cache, reserve, rest=rest, to=finish: to(cache, rest)
        req = scheduler.arrive(BODY, 9)
        steps(scheduler, 1)
        reasons.append(req.laprox.outcome.plan.reason)
    assert reasons == [None, "no_room"]


def test_what_a_prompt_in_chunks_still_needs_is_reserved():
    scheduler = Scheduler(200)
    reserves = []
    finish = scheduler.laprox.finish_prefill

    def spy(cache, reserve):
        reserves.append(reserve)
        return finish(cache, reserve)

    scheduler.laprox.finish_prefill = spy
    scheduler.arrive(PROMPT[:10])
    scheduler.arrive(OTHER)
    prefill(scheduler, 25)
    # The next tokens of those who decode are promised as well.
    assert reserves == [25 + 1, 2]


@EVERY_CORE
@pytest.mark.parametrize(("left", "pruned"), [(1, False), (2, True)])
def test_a_view_that_would_free_nothing_leaves_everybody_a_next_slot(tree, left, pruned):
    """One for who runs and one for itself: without them the view would only send somebody away."""
    size = len(BODY) + len(BODY) // 2 + left
    scheduler = Scheduler(size, config=replace(CONFIG, budget=0.5), tree=tree)
    scheduler.arrive(BODY, 5, enabled=False)
    steps(scheduler, 1)
    req = scheduler.arrive(BODY, 2)
    steps(scheduler, 1)
    assert (view_of(req) is not None) == pruned
    steps(scheduler, 1)
    assert req.finished() and not scheduler.laprox.report.totals.released["retracted"]


@EVERY_CACHE
@EVERY_LOOP
@pytest.mark.parametrize("chunk_size", [7, 1024])
@pytest.mark.parametrize("keep", [0, KEEP])
def test_a_pool_that_is_short_of_a_view_gives_up_what_it_stands_for(tree, overlap, chunk_size, keep):
    config = replace(CONFIG, keep_prefix=keep)
    scheduler = Scheduler(N + 6, config=config, tree=tree, overlap=overlap)
    req = scheduler.arrive(PROMPT, 4)
    prefill(scheduler, chunk_size)
    slots = view_of(req).slots
    assert scheduler.laprox.report.totals.staged == 1 and slots > 6
    assert kept(req) == kept_alone(config=config)
    assert pinned(scheduler) == keep + slots and in_tree(scheduler) < N
    steps(scheduler, 2)
    scheduler.run_until_idle()
    assert pinned(scheduler) == 0 and scheduler.laprox.report.totals.slots_freed == N - keep - slots


@EVERY_CORE
@EVERY_LOOP
def test_prompts_of_one_batch_take_their_views_from_each_other(tree, overlap):
    """All room is taken before anything is packed: slots of the second are what the first is packed from."""
    scheduler = Scheduler(2 * N + 12, tree=tree, overlap=overlap)
    reqs = [scheduler.arrive(PROMPT, 3), scheduler.arrive(OTHER, 3)]
    sources, finish = [], scheduler.laprox.finish_prefill

    def spy(*args):
        sources.append([set(scheduler.rows[req.kv.req_pool_idx, :N].tolist()) for req in reqs])
        return finish(*args)

    scheduler.laprox.finish_prefill = spy
    scheduler.step()
    check(scheduler)
    taken = set(scheduler.rows[reqs[1].kv.req_pool_idx, : view_of(reqs[1]).slots].tolist())
    assert taken & sources[0][0], "no such batch"
    assert [kept(req) for req in reqs] == [kept_alone(PROMPT), kept_alone(OTHER)]
    steps(scheduler, 2)


# Requests that leave before they end.


@EVERY_CACHE
@EVERY_LOOP
@pytest.mark.parametrize("ran", [1, 3, 6])
def test_a_retracted_request_comes_back_with_its_output_and_is_pruned_again(tree, overlap, ran):
    scheduler = Scheduler(200, tree=tree, overlap=overlap)
    req = scheduler.arrive(PROMPT, max_new_tokens=9)
    prefill(scheduler)
    steps(scheduler, ran)
    scheduler.retract_everything()
    whole = tree != "off"
    assert req.laprox.plan is None and view_of(req) is None
    assert pinned(scheduler) == 0 and available(scheduler) == 200 - whole * N
    output = len(req.output_ids)
    assert output >= 1
    batch = scheduler.step()
    # Its exact prompt is there: output and window are computed again.
    assert batch.prefix_lens == [whole * min(N, N + output - W)]
    assert view_of(req).end == N + output and in_tree(scheduler) == whole * (N + output)
    assert kept(req) == kept_alone([*PROMPT, *req.true_ids[N : N + output]])
    assert pinned(scheduler) == view_of(req).slots
    scheduler.run_until_idle()
    check(scheduler)
    assert len(req.output_ids) == 9 and pinned(scheduler) == 0
    released = scheduler.laprox.report.totals.released
    assert (released["retracted"], released["finished"], scheduler.laprox.report.totals.prunes) == (1, 1, 2)


@EVERY_CACHE
@EVERY_LOOP
def test_a_pool_that_is_full_retracts_pruned_requests(tree, overlap):
    scheduler = Scheduler(200, tree=tree, overlap=overlap)
    reqs = [scheduler.arrive(tokens, 6) for tokens in (PROMPT, OTHER, PROMPT)]
    prefill(scheduler)
    for retract in (True, False, True, False, True):
        scheduler.step(retract=retract)
        check(scheduler)
    scheduler.run_until_idle()
    check(scheduler)
    assert all(len(req.output_ids) == 6 for req in reqs) and pinned(scheduler) == 0
    assert scheduler.laprox.report.totals.released["retracted"] >= 2


@EVERY_CACHE
@EVERY_LOOP
@pytest.mark.parametrize("done", [[10], [37, 2]])
def test_a_prompt_that_is_retracted_between_its_chunks_starts_again(tree, overlap, done):
    scheduler = Scheduler(200, tree=tree, overlap=overlap)
    req = scheduler.arrive(PROMPT)
    for chunk in done:
        scheduler.step(chunk)
    assert (req.laprox.queries is not None) == (sum(done) > N - W)
    scheduler.retract_everything()
    assert req.laprox.queries is None and pinned(scheduler) == 0
    prefill(scheduler, 7)
    assert kept(req) == kept_alone()
    scheduler.run_until_idle()
    assert len(req.output_ids) == 4 and pinned(scheduler) == 0


def test_a_request_retracted_before_its_last_token_is_not_pruned_again():
    scheduler = Scheduler(200)
    req = scheduler.arrive(PROMPT, max_new_tokens=3)
    prefill(scheduler)
    scheduler.step()
    assert len(req.output_ids) == 2
    scheduler.retract_everything()
    prefill(scheduler)
    assert req.laprox.outcome.plan.reason == "no_decode" and scheduler.laprox.report.totals.prunes == 1
    scheduler.run_until_idle()
    assert len(req.output_ids) == 3


@EVERY_CACHE
@EVERY_LOOP
def test_abort_in_the_middle_of_a_prompt(tree, overlap):
    scheduler = Scheduler(200, tree=tree, overlap=overlap)
    req = scheduler.arrive(PROMPT)
    scheduler.step(37)
    scheduler.step(2)
    assert req.laprox.queries is not None
    scheduler.abort(req)
    scheduler.run_until_idle()
    check(scheduler)
    assert pinned(scheduler) == 0 and req.laprox.queries is None
    assert dict(scheduler.laprox.report.totals.released) == {"aborted_mid_prefill": 1}
    assert scheduler.laprox.report.totals.to_dict()["unpruned"] == {"aborted": 1}
    assert scheduler.laprox.report.totals.prunes == 0


@EVERY_CACHE
@EVERY_LOOP
@pytest.mark.parametrize("ran", [0, 2])
def test_abort_of_a_running_request(tree, overlap, ran):
    scheduler = Scheduler(200, tree=tree, overlap=overlap)
    req = scheduler.arrive(PROMPT, max_new_tokens=20)
    prefill(scheduler)
    steps(scheduler, ran)
    scheduler.abort(req)
    scheduler.run_until_idle()
    check(scheduler)
    assert pinned(scheduler) == 0 and len(req.output_ids) < 20
    assert in_tree(scheduler) == (N if tree != "off" else 0)
    assert dict(scheduler.laprox.report.totals.released) == {"aborted_running": 1}


@EVERY_CACHE
@EVERY_LOOP
def test_a_request_that_ends_with_its_first_token(tree, overlap):
    """A stop token, which nobody could know of when the view was made."""
    scheduler = Scheduler(200, tree=tree, overlap=overlap)
    req = scheduler.arrive(PROMPT, 9)
    req.sampling_params.stop_token_ids = {0, 1, 2, 3}
    req.sampling_params.ignore_eos = False
    scheduler.run_until_idle()
    check(scheduler)
    assert len(req.output_ids) == 1 and scheduler.laprox.report.totals.prunes == 1
    assert pinned(scheduler) == 0 and in_tree(scheduler) == (N if tree != "off" else 0)


# The least recently used goes first.


@EVERY_CORE
@EVERY_LOOP
@pytest.mark.parametrize("end", ["finish", "abort", "retract"])
def test_a_history_is_used_until_its_request_ends(tree, overlap, end):
    scheduler = Scheduler(200, tree=tree, overlap=overlap)
    touched, touch = [], scheduler.tree_cache.touch_prefix
    req = scheduler.arrive(PROMPT, 12)
    prefill(scheduler)
    other = scheduler.arrive(OTHER, 2)
    while not other.finished():
        scheduler.step()
    scheduler.tree_cache.touch_prefix = lambda key: touched.append(len(key)) or touch(key)
    if end == "retract":
        scheduler.retract_everything()
    else:
        if end == "abort":
            scheduler.abort(req)
        scheduler.run_until_idle()
    # As stock, which inserts what has ended, and does not insert what it retracts.
    assert touched == ([] if end == "retract" else [N])
    assert in_tree(scheduler) == 2 * N
    evict(scheduler, 1)
    assert (hit(scheduler, PROMPT) == N) == (end != "retract")
    assert (hit(scheduler, OTHER) == N) == (end == "retract")


# What SGLang does next to it.


@EVERY_CACHE
def test_a_checkpoint_of_a_request_with_a_view_does_nothing(tree):
    scheduler = Scheduler(200, config=KEEPING, tree=tree)
    req = scheduler.arrive(PROMPT, 9)
    prefill(scheduler)
    steps(scheduler, 2)
    cache, row = scheduler.tree_cache, scheduler.rows[req.kv.req_pool_idx]
    before, lock = row.clone(), req.lock

    def state():
        return (
            available(scheduler),
            cache.protected_size(),
            cache.evictable_size(),
            req.kv.cache_protected_len,
        )

    expected = state()
    cache.checkpoint(req, up_to=req.extend_end)
    cache.checkpoint(req, up_to=req.kv.kv_committed_len)
    assert torch.equal(row, before) and req.lock is lock and state() == expected
    check(scheduler)


@EVERY_LOOP
def test_who_waits_for_the_reads_of_a_prefill_waits_for_its_packing(overlap):
    scheduler = Scheduler(200, overlap=overlap)
    runner = scheduler.tp_worker.last_shared_read_runner
    event = runner.shared_read_done_event = object()
    scheduler.arrive(PROMPT[:7])
    scheduler.arrive(PROMPT, enabled=False)
    steps(scheduler, 2)
    assert runner.shared_read_done_event is event, "nothing was packed"
    scheduler.arrive(OTHER, 9)
    scheduler.step(21)
    assert runner.shared_read_done_event is event, "its prompt is not complete"
    prefill(scheduler)
    assert runner.shared_read_done_event is None
    runner.shared_read_done_event = event
    steps(scheduler, 1)
    assert runner.shared_read_done_event is event


def test_views_are_packed_on_the_forward_stream_from_slots_that_it_keeps():
    scheduler = Scheduler(200, overlap=True)
    order = scheduler.stream.asked
    make_view = scheduler.laprox.pruner.make_view
    scheduler.laprox.pruner.make_view = lambda *args: order.append("pack") or make_view(*args)
    reqs = [scheduler.arrive(PROMPT), scheduler.arrive(OTHER)]
    prefill(scheduler)
    said = [entry if isinstance(entry, str) else entry.tolist() for entry in order]
    first, second = (view_of(req).own.tolist() for req in reqs)
    assert said == ["behind", first, "pack", second, "pack"]


# What a decode step reads.


@EVERY_LOOP
def test_decode_layout_and_output_of_a_mixed_batch(overlap):
    scheduler = Scheduler(200, config=replace(CONFIG, keep_prefix=6), overlap=overlap)
    pruned, prefixed = scheduler.arrive(PROMPT, 9, keep_prefix=0), scheduler.arrive([3, *PROMPT], 9)
    whole = scheduler.arrive(PROMPT[:20], 9, enabled=False)
    seen = []
    prepare = scheduler.laprox.decode.prepare

    def spy(indices, lengths):
        prepare(indices, lengths)
        seen.append((scheduler.laprox.decode.rows, indices.tolist(), lengths.tolist()))

    scheduler.laprox.decode.prepare = spy
    prefill(scheduler)
    assert not seen, "a prefill has no compressed rows"
    for _ in range(3):
        scheduler.step()
    rows, indices, lengths = seen[-1]
    order = {req.kv.req_pool_idx: req for req in (pruned, prefixed, whole)}
    for line, (index, length) in enumerate(zip(indices, lengths, strict=True)):
        columns, view = scheduler.rows[index].tolist(), view_of(order[index])
        start, slots, end = (view.start, view.slots, view.end) if view else (0, 0, 0)
        by_hand = columns[:start] + columns[end:length] + columns[start : start + slots]
        assert rows.slots[line, : len(by_hand)].tolist() == by_hand and 0 not in by_hand
        assert int(rows.dense[line]) == start + length - end == int(rows.segment_start[line, 0])
        cu_cells = view.cu_cells.tolist() if view else [0] * (CELLS + 1)
        assert rows.cu_cells[line, 0].tolist() == cu_cells
    assert {bool(view_of(req)) for req in (pruned, prefixed)} == {True} and not view_of(whole)
    assert len(scheduler.decoded) == 3
    for req, view, tokens, output in scheduler.decoded:
        expected = expected_output(view, tokens, req.rid)
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)


@EVERY_LOOP
def test_a_captured_step_reads_its_own_copies(overlap):
    """Batches that grow and shrink pass through the buffers of the graphs one after another."""
    scheduler = Scheduler(200, config=replace(CONFIG, keep_prefix=6), overlap=overlap, graphs=True)
    for i, new_tokens in enumerate([3, 9, 5]):
        scheduler.arrive([i, *PROMPT], new_tokens, enabled=i < 2)
    sizes = set()
    while not scheduler.idle():
        scheduler.step()
        sizes.add(len(scheduler.decoded))
        for req, view, tokens, output in scheduler.decoded:
            expected = expected_output(view, tokens, req.rid)
            torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)
    assert {1, 2, 3} <= sizes


@EVERY_LOOP
def test_a_captured_step_does_not_read_the_tables_of_another_batch(overlap):
    """Batches of one padded size one after the other: in one row another request, then a row less."""
    scheduler = Scheduler(200, rows=2, config=replace(CONFIG, keep_prefix=6), overlap=overlap, graphs=True)
    for i, new_tokens in enumerate([3, 9, 4]):
        scheduler.arrive([i, *PROMPT], new_tokens)
    while not scheduler.idle():
        scheduler.step()
        check_decoded(scheduler)


@EVERY_LOOP
@pytest.mark.parametrize("graphs", [False, True])
def test_a_batch_of_whole_requests_is_left_to_stock(overlap, graphs):
    """Whatever was decoded before it."""
    scheduler = Scheduler(300, overlap=overlap, graphs=graphs)
    decode = scheduler.laprox.decode
    whole, pruned = scheduler.arrive(PROMPT, 20, enabled=False), scheduler.arrive(OTHER, 4)
    prefill(scheduler)
    while not pruned.finished():
        scheduler.step()
    steps(scheduler, 2)
    assert not whole.finished() and not decode.compressed
    assert decode.rows is None and decode.plan is None and not scheduler.decoded
    # A prefill in between leaves nothing either.
    scheduler.arrive(OTHER, 2)
    scheduler.step()
    assert decode.rows is None and not decode.compressed
    scheduler.run_until_idle()
    assert pinned(scheduler) == 0


def test_the_busy_leak_check_holds_only_with_our_correction():
    scheduler = Scheduler(200)
    req = scheduler.arrive(PROMPT, 9)
    prefill(scheduler)
    scheduler.step()
    checker = scheduler.invariant_checker
    stock_sizes = checker._get_total_uncached_sizes()
    spared = N - view_of(req).slots
    assert without_spared(stock_sizes, checker) == (stock_sizes[0] - spared, 0) and spared > 0
    scheduler.check_busy()
    with pytest.raises(AssertionError, match="Leak"):
        checker.self_check_during_busy()


def test_the_busy_leak_check_knows_a_prompt_between_its_chunks():
    scheduler = Scheduler(200)
    scheduler.arrive(PROMPT, 9)
    prefill(scheduler)
    scheduler.arrive(PROMPT[::-1], 9)
    scheduler.step(7)
    assert scheduler.chunked_req is not None and view_of(scheduler.running_batch.reqs[0])
    scheduler.check_busy()


@pytest.mark.parametrize("graphs", [False, True])
def test_a_capture_leaves_nothing_to_the_first_prefill(graphs):
    """The last graph that is captured may be one of compressed batches."""
    scheduler = Scheduler(200, graphs=graphs)
    capture(scheduler)
    req = scheduler.arrive(PROMPT)
    prefill(scheduler)
    assert kept(req) == kept_alone()
    steps(scheduler, 1)
    scheduler.run_until_idle()
    assert pinned(scheduler) == 0


def capture(scheduler: Scheduler) -> None:
    """A graph of a compressed batch, of one row."""
    decode = scheduler.laprox.decode
    decode.begin_capture(True)
    decode.prepare_graph(torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64))
    decode.make_plan()
    assert decode.rows is not None


@pytest.mark.parametrize("graphs", [False, True])
def test_a_capture_leaves_nothing_to_a_decode_step(graphs):
    scheduler = Scheduler(200, graphs=graphs)
    scheduler.arrive(PROMPT, 9, enabled=False)
    prefill(scheduler)
    capture(scheduler)
    steps(scheduler, 2)
    assert scheduler.laprox.decode.rows is None and not scheduler.decoded


def test_new_weights_give_new_scores():
    scheduler = Scheduler(200)
    before = scheduler.arrive(PROMPT)
    prefill(scheduler)
    first = kept(before)
    scheduler.run_until_idle()
    with torch.no_grad():
        projection = scheduler.model.layers[0].o_proj
        projection.weight[:, : projection.in_features // 2].zero_()
    weights.load_weights(scheduler.tp_worker.model_runner)
    after = scheduler.arrive(PROMPT)
    prefill(scheduler)
    assert kept(after) != first


def test_requests_are_counted_by_what_became_of_them():
    scheduler = Scheduler(200)
    pruned, dropped = scheduler.arrive(PROMPT), scheduler.arrive(PROMPT)
    whole = scheduler.arrive(PROMPT[::-1], enabled=False)
    prefill(scheduler)
    pruned_slots = view_of(pruned).slots
    scheduler.run_until_idle()
    # Aborted in the middle of its prefill: planned, never pruned.
    dropped.laprox.outcome = replace_outcome(dropped.laprox.outcome, view=None)
    streamer = SimpleNamespace(tree_cache=scheduler.tree_cache)
    said = add_facts({"other": [1, 2, 3]}, streamer, [pruned, dropped, whole])
    totals = scheduler.laprox.report.totals.to_dict()
    assert (totals["requests"], totals["pruned"], totals["unpruned"]) == (2, 1, {"disabled": 1})
    assert totals["slots_held"] == pruned.laprox.held + whole.laprox.held
    assert pruned.laprox.held in range(pruned_slots + 3, pruned_slots + 6)
    # One entry for each that has ended, however many tokens it has. The dropped one was counted before.
    assert said["other"] == [1, 2, 3] and [len(facts) for facts in said["laprox"]] == [1, 0, 1]
    assert said["laprox"][0][0]["pruned"] and not said["laprox"][2][0]["pruned"]


def test_a_request_that_goes_on_says_nothing_yet():
    scheduler = Scheduler(200)
    req = scheduler.arrive(PROMPT, 6)
    streamer = SimpleNamespace(tree_cache=scheduler.tree_cache)
    prefill(scheduler)
    assert add_facts({}, streamer, [req]) == {}
    scheduler.run_until_idle()
    assert len(add_facts({}, streamer, [req])["laprox"][0]) == 1


class Slow:
    """A CUDA event of a device that is not there yet, on the scheduler's thread."""

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        raise AssertionError("the scheduler waits for the device")


@EVERY_LOOP
def test_who_ends_before_its_view_is_made_is_told_what_the_host_knows(overlap):
    scheduler = Scheduler(200, overlap=overlap)
    reqs = [scheduler.arrive(PROMPT, 9), scheduler.arrive(OTHER, 3)]
    made, make_view = [], scheduler.laprox.pruner.make_view

    def make_slowly(*args):
        view = make_view(*args)
        if not made:
            view.host_counts._event = view.positions._event = Slow()
        made.append(view)
        return view

    scheduler.laprox.pruner.make_view = make_slowly
    reqs[0].sampling_params.stop_token_ids = {0, 1, 2, 3}
    reqs[0].sampling_params.ignore_eos = False
    scheduler.run_until_idle()
    streamer = SimpleNamespace(tree_cache=scheduler.tree_cache)
    [first], [second] = add_facts({}, streamer, reqs)["laprox"]
    assert len(reqs[0].output_ids) == 1 and set(first) == set(second)
    known = {name: value for name, value in first.items() if value is not None}
    unknown = {name for name, value in second.items() if value is not None} - set(known)
    assert unknown == {"erased_share", "layer_share", "kept_positions"}
    # Of prompts of one length all else is the same.
    assert all(second[name] == value for name, value in known.items())
    totals = scheduler.laprox.report.totals
    assert totals.finished["pruned"] == 2 and totals.kept_tokens == 2 * made[0].slots
    # What is not known of the first is in no quotient.
    assert totals.viewed_tokens == N and totals.kept_cells.total() == made[1].kept_cells
    assert totals.scored_cells * LAYERS == N * CELLS


def test_a_copy_is_not_read_before_it_is_there():
    copy = HostCopy(torch.arange(3))
    assert copy.there and copy.tolist() == [0, 1, 2]
    copy._event = Slow()
    for read in (copy.tolist, copy.tobytes):
        with pytest.raises(AssertionError, match="before the device has written it"):
            read()


# What SGLang's memory should never do, and what becomes of the one request if it does.


@EVERY_CORE
@EVERY_LOOP
@pytest.mark.parametrize("keep", [0, KEEP])
@pytest.mark.parametrize("fault", ["not published", "not found"])
def test_a_prompt_that_the_tree_does_not_hold_is_left_whole(tree, overlap, keep, fault):
    scheduler = Scheduler(100, config=replace(CONFIG, keep_prefix=keep), tree=tree, overlap=overlap)
    cache = scheduler.tree_cache
    if fault == "not published":
        cache.publish = lambda req: None
    else:
        cache._node_at = lambda req, length: None
    req = scheduler.arrive(PROMPT)
    prefill(scheduler)
    assert req.laprox.outcome.plan.reason == "not_in_tree" and view_of(req) is None
    steps(scheduler, 2)
    scheduler.run_until_idle()
    check(scheduler)
    assert pinned(scheduler) == 0 and len(req.output_ids) == 4
    assert scheduler.laprox.report.totals.prunes == 0


@EVERY_CORE
@EVERY_LOOP
@pytest.mark.parametrize("keep", [0, KEEP])
@pytest.mark.parametrize("evicted", [0, 1, N])
def test_a_prompt_for_whose_view_less_is_freed_than_counted_is_whole_again(tree, overlap, keep, evicted):
    """Its lock has moved by then, and some of it, or all behind its prefix, may have been evicted."""
    config = replace(CONFIG, keep_prefix=keep)
    scheduler = Scheduler(200, config=config, tree=tree, overlap=overlap)
    allocator = scheduler.token_to_kv_pool_allocator
    # Slots are taken as late as that only if there were none to take before.
    scheduler.tree_cache.take = lambda slots: None
    alloc, finish, lost = allocator.alloc, scheduler.laprox.finish_prefill, []

    def fail_once(need_size):
        allocator.alloc = alloc
        before = available(scheduler)
        evict(scheduler, evicted)
        lost.append(available(scheduler) - before)

    def finish_without_room(*args):
        allocator.alloc = fail_once if not lost and scheduler.laprox._last else alloc
        return finish(*args)

    scheduler.laprox.finish_prefill = finish_without_room
    # In chunks, so that the prompt is several nodes of the tree.
    req, other = scheduler.arrive(PROMPT), scheduler.arrive(OTHER, 6)
    prefill(scheduler, 16)
    assert req.laprox.outcome.plan.reason == "no_room" and view_of(req) is None
    assert view_of(other) is not None and bool(lost[0]) == bool(evicted)
    steps(scheduler, 2)
    scheduler.run_until_idle()
    check(scheduler)
    assert pinned(scheduler) == 0 and len(req.output_ids) == 4 and len(other.output_ids) == 6
    # It was never written over, and goes into the tree as stock's.
    assert hit(scheduler, PROMPT) == N


def test_a_step_without_requests_is_not_taken_for_the_one_before():
    """With attention data parallelism a rank steps along with others while it has no requests of its own."""
    scheduler = Scheduler(200)
    scheduler.arrive(PROMPT, 9)
    decode, seen = scheduler.laprox.decode, []
    while not decode.compressed:
        scheduler.step()
    idle = SimpleNamespace(forward_mode=ForwardMode.IDLE, reqs=[])
    run_batch(lambda self, batch: seen.append((decode.compressed, decode.rows)), scheduler, idle)
    assert seen == [(False, None)]
    scheduler.run_until_idle()


def test_a_view_that_is_exchanged_for_a_smaller_one_lets_others_in():
    scheduler = Scheduler(200)
    req = scheduler.arrive(PROMPT, 4)
    prefill(scheduler)
    cache, view, before = scheduler.tree_cache, view_of(req), available(scheduler)
    cache.grew = False
    smaller = replace_outcome(view, own=view.own[:-2])
    cache.exchange(req, smaller, view.own[-2:])
    assert view_of(req) is smaller
    assert available(scheduler) == before + 2 and cache.grew
    # Of a request that ends SGLang knows by itself.
    cache.grew = False
    cache.exchange(req, None, smaller.own)
    assert available(scheduler) == before + view.slots and not cache.grew


def test_without_a_tree_a_view_is_packed_by_way_of_a_copy():
    """Its slots are among those that it is packed from."""
    scheduler = Scheduler(100, tree="off")
    scheduler.arrive(PROMPT)
    prefill(scheduler)
    totals = scheduler.laprox.report.totals
    assert totals.staged == totals.prunes == 1


@EVERY_LOOP
@pytest.mark.parametrize("in_tree", [True, False])
def test_who_is_aborted_while_it_runs_is_counted_as_that(overlap, in_tree):
    """Whether or not the tree may hold the prompt; SGLang's own word at the release mixes the two."""
    scheduler = Scheduler(200, overlap=overlap)
    req = scheduler.arrive(PROMPT, 9)
    req.skip_radix_cache_insert = not in_tree
    prefill(scheduler)
    steps(scheduler, 2)
    scheduler.abort(req)
    scheduler.run_until_idle()
    totals = scheduler.laprox.report.totals
    assert totals.released["aborted_running"] == 1 and not totals.finished["aborted"]
    assert not req.laprox.computed and pinned(scheduler) == 0
