"""Random interleavings of everything a scheduler does: each slot stays in exactly one place."""

from collections import Counter

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace
from sglang.srt.mem_cache.base_prefix_cache import EvictParams

from fakes import CELLS, CONFIG, DIM, Scheduler, expected_output, leak_checker, sglang_context, stamp
from laprox_patches.leak_check import without_freed
from laprox_sglang.segment import segment_of

# Long enough to be pruned, and few enough that requests meet in the tree.
PREFIXES = [(), (0, 1, 2, 0, 1), (0, 1, 2, 3, 3, 2, 1, 0, 0, 1, 1, 2)]
BODIES = [(2, 3, 1, 0, 2), (3, 3, 0, 1, 2, 2, 0, 3, 1, 1), (1, 2, 0, 3) * 4 + (2, 2)]
EXAMPLES, STEPS = 250, 40


def check(scheduler: Scheduler) -> None:
    """Every slot in one place, the tree's sums right, and in every slot what belongs there."""
    allocator = scheduler.token_to_kv_pool_allocator
    assert allocator.is_not_in_free_group
    places = allocator.free_pages.tolist()
    shared = check_tree(scheduler) if scheduler.tree_cache.is_tree_cache() else {}
    places += shared.values()
    for req in scheduler.live():
        places += check_request(scheduler, req, shared)
    assert sorted(places) == list(range(1, allocator.size + 1)), "a slot is lost or in two places"


def check_tree(scheduler: Scheduler) -> dict[tuple[int, ...], int]:
    """Slot of every token prefix in the tree."""
    tree = scheduler.tree_cache
    locks = {}
    for req in scheduler.live():
        node = req.last_node
        while node is not tree.root_node:
            locks[node.id] = locks.get(node.id, 0) + 1
            node = node.parent
    shared, evictable, protected = {}, 0, 0
    stack = [(tree.root_node, ())]
    while stack:
        node, prefix = stack.pop()
        for child in node.children.values():
            tokens, slots = child.key.token_ids.tolist(), child.value.tolist()
            assert child.parent is node and len(tokens) == len(slots) > 0
            assert child.lock_ref == locks.get(child.id, 0), "lock without a request, or the reverse"
            shared |= {(*prefix, *tokens[: i + 1]): slot for i, slot in enumerate(slots)}
            evictable += len(slots) * (child.lock_ref == 0)
            protected += len(slots) * (child.lock_ref > 0)
            stack.append((child, (*prefix, *tokens)))
    assert (tree.evictable_size(), tree.protected_size()) == (evictable, protected)
    for prefix, slot in shared.items():
        check_cells(scheduler, slot, prefix)
    return shared


def check_request(scheduler: Scheduler, req, shared: dict[tuple[int, ...], int]) -> list[int]:
    """The request's private slots, after a look into them."""
    row = scheduler.rows[req.req_pool_idx]
    columns = row.tolist()
    tokens = tuple(req.true_ids)
    owned = req.cache_protected_len
    for i in range(owned):
        assert columns[i] == shared[tokens[: i + 1]], "a protected column is not the tree's"
    segment = segment_of(req)
    private = set(range(owned, req.kv.kv_allocated_len))
    if segment:
        segment.check_integrity(row)
        assert segment.start >= owned and segment.slots == req.laprox.plan.slots
        private -= set(range(segment.start, segment.end))
        check_segment(scheduler, segment, columns, tokens)
    for i in private:
        check_cells(scheduler, columns[i], tokens[: i + 1], req.rid if segment and i >= segment.end else "")
    held = range(segment.start, segment.start + segment.slots) if segment else ()
    return [columns[i] for i in (*private, *held)]


def check_cells(scheduler: Scheduler, slot: int, prefix: tuple[int, ...], owner: str = "") -> None:
    k, v, _ = stamp(prefix, owner)
    assert torch.equal(scheduler.pool.keys[slot], k) and torch.equal(scheduler.pool.values[slot], v), prefix


def check_segment(scheduler: Scheduler, segment, columns: list[int], tokens: tuple[int, ...]) -> None:
    """Packed cells are those of the kept positions; what is protected is kept in every head."""
    positions, cu_cells = segment.positions.tolist(), segment.cu_cells.tolist()
    sinks = range(segment.start, max(segment.start, scheduler.laprox.config.sink_tokens))
    always = {*sinks, *range(segment.end - scheduler.laprox.config.window, segment.end)}
    for cell in range(CELLS):
        kept = positions[cu_cells[cell] : cu_cells[cell + 1]]
        assert always <= set(kept) and kept == sorted(set(kept))
        for place, position in enumerate(kept, cu_cells[cell]):
            slot = columns[segment.start + place // CELLS]
            expected = stamp(tokens[: position + 1])
            for pool, of_token in zip((scheduler.pool.keys, scheduler.pool.values), expected, strict=False):
                found = pool[slot].view(CELLS, DIM)[place % CELLS]
                assert torch.equal(found, of_token.view(CELLS, DIM)[cell])


def check_decoded(scheduler: Scheduler) -> None:
    """What a decode step over segments came to, against attention over the cells it should see."""
    for req, segment, tokens, output in scheduler.decoded:
        expected = expected_output(segment, tokens, req.rid)
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)


class Machine(RuleBasedStateMachine):
    tree: bool
    counts: Counter[str]

    @initialize(
        overlap=st.booleans(),
        graphs=st.booleans(),
        size=st.sampled_from([48, 64, 90]),
        budget=st.sampled_from([0.2, 0.5, 9]),
        keep=st.sampled_from([0, 0, 4, 20]),
    )
    def start(self, overlap, graphs, size, budget, keep):
        config = replace(CONFIG, budget=budget, keep_prefix=keep)
        self.scheduler = Scheduler(size, config=config, tree=self.tree, overlap=overlap, graphs=graphs)
        self.prompts = [(0, 1, 2)]
        self.aborted_waiting = 0

    @rule(
        prefix=st.sampled_from(PREFIXES),
        body=st.sampled_from(BODIES),
        tail=st.lists(st.integers(0, 1), max_size=2),
        new=st.sampled_from([1, 2, 3, 7]),
        options=st.sampled_from([{}, {}, {}, {"enabled": False}, {"budget": 0.2}, {"keep_prefix": 5}]),
    )
    def arrive(self, prefix, body, tail, new, options):
        self.prompts.append((*prefix, *body, *tail))
        self.scheduler.arrive(self.prompts[-1], new, **options)

    @rule(index=st.integers(0, 99), cut=st.integers(1, 40), new=st.sampled_from([2, 5]))
    def arrive_again(self, index, cut, new):
        self.scheduler.arrive(self.prompts[index % len(self.prompts)][:cut], new)

    @rule(chunk=st.sampled_from([1, 2, 5, 5, 11, 1024]), turns=st.integers(1, 3))
    def step(self, chunk, turns):
        for _ in range(turns):
            self.turn(chunk)

    @rule()
    def step_and_retract(self):
        self.turn(1024, retract=True)

    def turn(self, chunk, retract=False):
        self.scheduler.step(chunk, retract)
        check_decoded(self.scheduler)
        check(self.scheduler)
        self.check_busy()

    def check_busy(self):
        """SGLang's leak check of a busy scheduler, with our correction."""
        scheduler, seen = self.scheduler, {}
        for batch in (scheduler.last_batch, scheduler.running_batch):
            seen |= {id(batch): [req for req in batch.reqs if req.kv]} if batch else {}
        if not scheduler.last_batch:
            return
        columns = sum(r.kv.kv_allocated_len - r.cache_protected_len for reqs in seen.values() for r in reqs)
        uncached, _ = without_freed((columns, 0), leak_checker(scheduler.last_batch, scheduler.running_batch))
        tree, allocator = scheduler.tree_cache, scheduler.token_to_kv_pool_allocator
        cached = tree.evictable_size() + tree.protected_size() if self.tree else 0
        assert allocator.available_size() + cached + uncached == allocator.size

    @rule()
    def retract_everything(self):
        self.scheduler.retract_everything()

    @rule(index=st.integers(0, 9))
    def abort(self, index):
        reqs = self.scheduler.waiting_queue + self.scheduler.live()
        if reqs:
            req = reqs[index % len(reqs)]
            self.counts["aborted_waiting"] += req.req_pool_idx is None
            self.scheduler.abort(req)

    @rule(chunk=st.integers(1, 4), prefix=st.sampled_from(PREFIXES))
    def abort_mid_prefill(self, chunk, prefix):
        if not self.scheduler.chunked_req:
            self.scheduler.arrive((*prefix, *BODIES[-1]))
            self.turn(chunk)
        if self.scheduler.chunked_req:
            self.scheduler.abort(self.scheduler.chunked_req)

    @precondition(lambda self: self.tree)
    @rule(tokens=st.integers(1, 30))
    def evict(self, tokens):
        self.scheduler.tree_cache.evict(EvictParams(num_tokens=tokens))

    @precondition(lambda self: self.scheduler.idle())
    @rule()
    def flush(self):
        self.scheduler.flush()
        assert self.scheduler.token_to_kv_pool_allocator.available_size() == self.scheduler.pool.size

    @invariant()
    def each_slot_is_in_one_place(self):
        check(self.scheduler)

    def teardown(self):
        scheduler = getattr(self, "scheduler", None)
        if scheduler is None:
            return
        for _ in range(500):
            if scheduler.idle():
                break
            self.turn(1024)
        assert scheduler.idle(), "the scheduler got stuck"
        if self.tree:
            scheduler.tree_cache.evict(EvictParams(num_tokens=scheduler.pool.size))
        assert scheduler.token_to_kv_pool_allocator.available_size() == scheduler.pool.size
        self.counts.update(scheduler.laprox.totals.released)
        self.counts["pruned"] += scheduler.laprox.totals.prunes


@pytest.mark.parametrize("tree", [True, False], ids=["radix-cache", "chunk-cache"])
def test_every_slot_is_in_exactly_one_place(tree, seed):
    machine = type("Machine", (Machine,), {"tree": tree, "counts": Counter()})
    settings = hypothesis.settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    with sglang_context():
        hypothesis.stateful.run_state_machine_as_test(hypothesis.seed(seed)(machine), settings=settings)
    print(machine.counts)
    # A test of memory that never pruned, retracted or aborted would prove nothing.
    for event in "pruned finished retracted aborted_waiting aborted_mid_prefill aborted_running".split():
        assert machine.counts[event] >= 20, machine.counts
