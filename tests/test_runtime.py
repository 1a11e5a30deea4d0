"""The runtime between a real pool, allocator and cache: what it keeps, what it frees, what it reads."""

from dataclasses import replace as replace_outcome
from types import SimpleNamespace

import pytest
import torch
from msgspec.structs import replace

from fakes import (
    CELLS,
    CONFIG,
    DIM,
    QUERY_HEADS,
    TREES,
    Scheduler,
    expected_output,
    sglang_context,
    stamp,
)
from laprox_patches import weights
from laprox_patches.leak_check import without_freed
from laprox_patches.output import attach_facts
from laprox_sglang.segment import segment_of

PROMPT = [(i * i + i // 3) % 4 for i in range(40)]
EVERY_CACHE = pytest.mark.parametrize("tree", TREES)
EVERY_LOOP = pytest.mark.parametrize("overlap", [False, True], ids=["sync", "overlap"])


@pytest.fixture(autouse=True)
def sglang():
    with sglang_context():
        yield


def available(scheduler: Scheduler) -> int:
    return scheduler.token_to_kv_pool_allocator.available_size()


def prefill(scheduler: Scheduler, chunk_size: int = 1024) -> None:
    """Steps until nobody waits and no prompt is half done; the prompts are pruned, nothing is decoded."""
    while scheduler.waiting_queue or scheduler.chunked_req:
        scheduler.step(chunk_size)


def kept(req) -> tuple[list[int], list[int]]:
    segment = segment_of(req)
    return segment.positions.tolist(), segment.cu_cells.tolist()


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, min_tokens=2, window=1, sink_tokens=0)])
def test_what_a_gpu_compiles_at_the_start_runs(config):
    scheduler = Scheduler(100, config=config)
    scheduler.laprox._compile(torch.zeros((config.window, QUERY_HEADS, DIM)))
    prompts = [scheduler.arrive(PROMPT, 3) for _ in range(2)]
    prefill(scheduler)
    fresh = Scheduler(100, config=config)
    expected = fresh.arrive(PROMPT, 3)
    prefill(fresh)
    assert [kept(req) for req in prompts] == [kept(expected)] * 2


@EVERY_CACHE
@EVERY_LOOP
@pytest.mark.parametrize("budget", [0.2, 0.4, 17, 39 / 40])
def test_a_pruned_range_holds_exactly_m_slots(tree, overlap, budget):
    scheduler = Scheduler(100, config=replace(CONFIG, budget=budget), tree=tree, overlap=overlap)
    req = scheduler.arrive(PROMPT)
    before = available(scheduler)
    prefill(scheduler)
    segment = segment_of(req)
    assert before - available(scheduler) == segment.slots == req.laprox.plan.slots < len(PROMPT)
    assert req.laprox.outcome.slots_before == len(PROMPT) and req.laprox.outcome.slots_after == segment.slots
    scheduler.step()
    # One token has been decoded; with overlap nothing else has happened either.
    assert before - available(scheduler) == segment.slots + 1
    scheduler.run_until_idle()
    assert available(scheduler) == before and req.laprox.segment is None
    assert scheduler.laprox.totals.slots_freed == len(PROMPT) - segment.slots


@EVERY_CACHE
def test_freed_columns_are_zero_and_the_segment_is_whole(tree):
    scheduler = Scheduler(100, tree=tree)
    req = scheduler.arrive(PROMPT)
    prefill(scheduler)
    row, segment = scheduler.rows[req.kv.req_pool_idx], segment_of(req)
    assert not row[segment.slots : len(PROMPT)].any() and bool(row[: segment.slots].all())
    segment.check_integrity(row)
    for column in (0, segment.slots, len(PROMPT) - 1):
        broken = row.clone()
        broken[column] = 0 if column == 0 else 7
        with pytest.raises(AssertionError):
            segment.check_integrity(broken)
    broken = row.clone()
    broken[1] = broken[0]
    with pytest.raises(AssertionError):
        segment.check_integrity(broken)


@EVERY_CACHE
@EVERY_LOOP
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 4, 5, 7, 39, 40, 2048])
def test_the_same_cells_are_kept_whatever_the_chunks(tree, overlap, chunk_size):
    whole = Scheduler(100, tree=tree)
    expected = whole.arrive(PROMPT)
    prefill(whole)
    scheduler = Scheduler(100, tree=tree, overlap=overlap)
    req = scheduler.arrive(PROMPT)
    prefill(scheduler, chunk_size)
    assert kept(req) == kept(expected)
    assert req.laprox.window_queries is None, "the window outlives its use"


def test_the_same_cells_are_kept_beside_other_requests():
    alone = Scheduler(200)
    expected = alone.arrive(PROMPT)
    prefill(alone)
    scheduler = Scheduler(200)
    others = [scheduler.arrive([1, 1, 2]), scheduler.arrive(PROMPT[::-1])]
    req = scheduler.arrive(PROMPT)
    scheduler.arrive([2] * 30, enabled=False)
    prefill(scheduler, 33)
    assert kept(req) == kept(expected)
    assert segment_of(others[0]) is None and segment_of(others[1]) is not None


def test_a_prefix_hit_leaves_the_prefix_alone():
    scheduler = Scheduler(200)
    first = scheduler.arrive(PROMPT[:15], enabled=False, max_new_tokens=1)
    scheduler.run_until_idle()
    tree = scheduler.tree_cache
    shared = tree.evictable_size()
    assert first.finished() and shared == 15
    before = available(scheduler)
    keys = scheduler.pool.keys.clone()
    req = scheduler.arrive(PROMPT)
    prefill(scheduler)
    segment = segment_of(req)
    assert (segment.start, segment.end) == (15, 40) and req.laprox.plan.sinks == 0
    assert before - available(scheduler) == segment.slots
    owned = scheduler.rows[req.kv.req_pool_idx, :15].long()
    assert torch.equal(scheduler.pool.keys[owned], keys[owned])
    assert (tree.protected_size(), tree.evictable_size()) == (15, 0)
    assert min(segment.positions.tolist()) >= 15
    scheduler.run_until_idle()
    assert (tree.protected_size(), tree.evictable_size()) == (0, 15) and available(scheduler) == before


@EVERY_LOOP
@pytest.mark.parametrize("chunk_size", [3, 7, 1024])
def test_kept_prefix_enters_the_tree_whole_and_is_hit(overlap, chunk_size):
    scheduler = Scheduler(200, config=replace(CONFIG, keep_prefix=12), overlap=overlap)
    first = scheduler.arrive(PROMPT)
    scheduler.run_until_idle(chunk_size)
    tree = scheduler.tree_cache
    assert (tree.evictable_size(), *tree.total_size()) == (12, 12, 0) and available(scheduler) == 200 - 12
    second = scheduler.arrive(PROMPT[:12] + [3] * 20)
    prefill(scheduler)
    assert first.cached_tokens == 0 and second.cached_tokens == 12
    assert segment_of(second).start == 12
    for position in range(12):
        slot = scheduler.rows[second.kv.req_pool_idx, position]
        assert torch.equal(scheduler.pool.keys[slot], stamp(tuple(PROMPT[: position + 1]))[0])


@EVERY_LOOP
def test_two_requests_that_insert_the_same_prefix_at_once(overlap):
    scheduler = Scheduler(200, config=replace(CONFIG, keep_prefix=12), overlap=overlap)
    # Both are in one batch, so that neither can hit the other.
    reqs = [scheduler.arrive(PROMPT), scheduler.arrive(PROMPT[:12] + [3] * 20)]
    prefill(scheduler)
    scheduler.step()
    assert all(req.cached_tokens == 0 and req.kv.cache_protected_len == 12 for req in reqs)
    rows = [scheduler.rows[req.kv.req_pool_idx, :12].tolist() for req in reqs]
    assert rows[0] == rows[1] and scheduler.tree_cache.total_size() == (12, 0)
    assert available(scheduler) == 200 - 12 - sum(segment_of(req).slots + 1 for req in reqs)
    scheduler.run_until_idle()
    assert available(scheduler) == 200 - 12 and scheduler.tree_cache.evictable_size() == 12


@EVERY_CACHE
@EVERY_LOOP
def test_a_retracted_request_comes_back_with_its_output_and_is_pruned_again(tree, overlap):
    scheduler = Scheduler(200, tree=tree, overlap=overlap)
    req = scheduler.arrive(PROMPT, max_new_tokens=9)
    prefill(scheduler)
    for _ in range(3):
        scheduler.step()
    scheduler.retract_everything()
    assert available(scheduler) == 200 and not req.laprox.will_prune and segment_of(req) is None
    output = len(req.output_ids)
    assert output > 1
    prefill(scheduler)
    assert segment_of(req).end == len(PROMPT) + output
    assert 200 - available(scheduler) == segment_of(req).slots
    scheduler.run_until_idle()
    assert len(req.output_ids) == 9 and available(scheduler) == 200
    released = scheduler.laprox.totals.released
    assert (released["retracted"], released["finished"], scheduler.laprox.totals.prunes) == (1, 1, 2)


def test_a_request_retracted_before_its_last_token_is_not_pruned_again():
    scheduler = Scheduler(200)
    req = scheduler.arrive(PROMPT, max_new_tokens=3)
    prefill(scheduler)
    scheduler.step()
    assert len(req.output_ids) == 2
    scheduler.retract_everything()
    prefill(scheduler)
    assert req.laprox.outcome.plan.reason == "no_decode" and scheduler.laprox.totals.prunes == 1
    scheduler.run_until_idle()
    assert len(req.output_ids) == 3


@EVERY_CACHE
@EVERY_LOOP
def test_abort_in_the_middle_of_a_prompt(tree, overlap):
    scheduler = Scheduler(200, tree=tree, overlap=overlap)
    req = scheduler.arrive(PROMPT)
    scheduler.step(37)
    scheduler.step(2)
    assert req.laprox.window_queries is not None
    scheduler.abort(req)
    scheduler.run_until_idle()
    assert available(scheduler) == 200 and req.laprox.window_queries is None
    assert dict(scheduler.laprox.totals.released) == {"aborted_mid_prefill": 1}
    assert scheduler.laprox.totals.prunes == 0


@EVERY_CACHE
@EVERY_LOOP
@pytest.mark.parametrize("steps", [0, 2])
def test_abort_of_a_running_request(tree, overlap, steps):
    scheduler = Scheduler(200, tree=tree, overlap=overlap)
    req = scheduler.arrive(PROMPT, max_new_tokens=20)
    prefill(scheduler)
    for _ in range(steps):
        scheduler.step()
    scheduler.abort(req)
    scheduler.run_until_idle()
    assert available(scheduler) == 200 and len(req.output_ids) < 20
    assert dict(scheduler.laprox.totals.released) == {"aborted_running": 1}


def test_a_request_that_stays_whole_is_cached_as_in_stock():
    scheduler = Scheduler(200)
    req = scheduler.arrive(PROMPT, enabled=False)
    scheduler.run_until_idle()
    assert req.laprox.outcome.segment is None and req.laprox.outcome.plan.reason == "disabled"
    # The last token was never fed back, so it has no KV.
    assert scheduler.tree_cache.evictable_size() == len(PROMPT) + len(req.output_ids) - 1


def test_freed_slots_admit_who_waits():
    """One prompt nearly fills the pool; the next gets in as soon as the first is pruned."""
    scheduler = Scheduler(72)
    first, second = scheduler.arrive(PROMPT, 9), scheduler.arrive(PROMPT[::-1], 9)
    scheduler.step()
    assert segment_of(first) is not None and segment_of(second) is None
    assert not scheduler.running_batch.batch_is_full
    scheduler.step()
    assert segment_of(second) is not None and segment_of(first) is not None, "both run at once"


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
        columns, segment = scheduler.rows[index].tolist(), segment_of(order[index])
        start, slots, end = (segment.start, segment.slots, segment.end) if segment else (0, 0, 0)
        by_hand = columns[:start] + columns[end:length] + columns[start : start + slots]
        assert rows.slots[line, : len(by_hand)].tolist() == by_hand and 0 not in by_hand
        assert int(rows.dense[line]) == start + length - end == int(rows.segment_start[line, 0])
        cu_cells = segment.cu_cells.tolist() if segment else [0] * (CELLS + 1)
        assert rows.cu_cells[line, 0].tolist() == cu_cells
    assert {bool(segment_of(req)) for req in (pruned, prefixed)} == {True} and not segment_of(whole)
    assert len(scheduler.decoded) == 3
    for req, segment, tokens, output in scheduler.decoded:
        expected = expected_output(segment, tokens, req.rid)
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
        for req, segment, tokens, output in scheduler.decoded:
            expected = expected_output(segment, tokens, req.rid)
            torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)
    assert {1, 2, 3} <= sizes


def test_a_batch_of_whole_requests_is_left_to_stock():
    scheduler = Scheduler(200)
    scheduler.arrive(PROMPT, enabled=False)
    prefill(scheduler)
    scheduler.step()
    assert scheduler.laprox.decode.rows is None and not scheduler.decoded


def test_the_busy_leak_check_holds_only_with_our_correction():
    scheduler = Scheduler(200)
    req = scheduler.arrive(PROMPT, 9)
    prefill(scheduler)
    scheduler.step()
    checker = scheduler.invariant_checker
    stock_sizes = checker._get_total_uncached_sizes()
    assert without_freed(stock_sizes, checker) == (stock_sizes[0] - segment_of(req).freed, 0)
    scheduler.check_busy()
    with pytest.raises(AssertionError, match="Leak"):
        checker.self_check_during_busy()


def test_the_busy_leak_check_knows_a_prompt_between_its_chunks():
    scheduler = Scheduler(200)
    scheduler.arrive(PROMPT, 9)
    prefill(scheduler)
    scheduler.arrive(PROMPT[::-1], 9)
    scheduler.step(7)
    assert scheduler.chunked_req is not None and segment_of(scheduler.running_batch.reqs[0])
    scheduler.check_busy()


@pytest.mark.parametrize("graphs", [False, True])
def test_a_capture_leaves_nothing_to_the_first_prefill(graphs):
    """The last graph that is captured may be one of compressed batches."""
    scheduler, fresh = Scheduler(200, graphs=graphs), Scheduler(200, graphs=graphs)
    scheduler.laprox.decode.begin_capture(True)
    reqs = [each.arrive(PROMPT) for each in (scheduler, fresh)]
    for each in (scheduler, fresh):
        prefill(each)
    assert kept(reqs[0]) == kept(reqs[1])
    scheduler.run_until_idle()
    assert available(scheduler) == 200


def test_new_weights_give_new_scores():
    scheduler = Scheduler(200)
    before = scheduler.arrive(PROMPT)
    prefill(scheduler)
    first = kept(before)
    scheduler.run_until_idle()
    with torch.no_grad():
        projection = scheduler.model.layers[0].o_proj
        projection.weight[:, : projection.in_features // 2].zero_()
    assert weights.reload((True, ""), scheduler, None, True, "") is None, "SGLang's own result stands"
    after = scheduler.arrive(PROMPT)
    prefill(scheduler)
    assert kept(after) != first


def test_requests_are_counted_by_what_became_of_them():
    scheduler = Scheduler(200)
    pruned, dropped = scheduler.arrive(PROMPT), scheduler.arrive(PROMPT)
    whole = scheduler.arrive(PROMPT[::-1], enabled=False)
    prefill(scheduler)
    pruned_slots = segment_of(pruned).slots
    scheduler.run_until_idle()
    # Aborted in the middle of its prefill: planned, never pruned, never streamed.
    dropped.laprox.outcome = replace_outcome(dropped.laprox.outcome, segment=None)
    streamer = SimpleNamespace(tree_cache=scheduler.tree_cache)
    attach_facts(streamer, [pruned, whole, dropped], False, skip_req=dropped)
    totals = scheduler.laprox.totals.to_dict()
    assert (totals["requests"], totals["pruned"], totals["unpruned"]) == (2, 1, {"disabled": 1})
    assert totals["slots_held"] == pruned.laprox.held + whole.laprox.held
    assert pruned.laprox.held in range(pruned_slots + 3, pruned_slots + 6)
    entries = pruned.customized_info["laprox"]
    assert len(entries) == len(pruned.output_ids) and entries[:-1] == [None] * (len(entries) - 1)
    assert entries[-1]["pruned"] and not whole.customized_info["laprox"][-1]["pruned"]
    attach_facts(streamer, [dropped], False)
    assert scheduler.laprox.totals.to_dict()["unpruned"] == {"disabled": 1, "aborted": 1}


@pytest.mark.parametrize("incremental", [True, False])
def test_a_stream_has_an_entry_for_every_token_where_it_is_cut_up_by_token(incremental):
    scheduler = Scheduler(200)
    req = scheduler.arrive(PROMPT, 6)
    req.stream = True
    arguments = SimpleNamespace(incremental_streaming_output=incremental)
    streamer = SimpleNamespace(tree_cache=scheduler.tree_cache, server_args=arguments)
    while not req.finished():
        scheduler.step()
        attach_facts(streamer, [req], False)
        entries = (req.customized_info or {}).get("laprox")
        if incremental or req.finished():
            assert len(entries) == len(req.output_ids)
        else:
            assert entries is None
    assert entries[:-1] == [None] * 5 and entries[-1]["pruned"]
