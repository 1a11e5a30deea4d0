"""Random interleavings of everything a scheduler does: each slot stays in exactly one place."""

import os
from array import array
from collections import Counter

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType

from fakes import CELLS, CONFIG, DIM, FP8, Scheduler, expected_output, sglang_context, stamp
from laprox_sglang.cache import tier
from laprox_sglang.views.state import view_of

# Long enough to be pruned, and few enough that requests meet in the tree.
PREFIXES = [(), (0, 1, 2, 0, 1), (0, 1, 2, 3, 3, 2, 1, 0, 0, 1, 1, 2)]
BODIES = [(2, 3, 1, 0, 2), (3, 3, 0, 1, 2, 2, 0, 3, 1, 1), (1, 2, 0, 3) * 4 + (2, 2)]
# An order of SGLang's that lets short prompts in beside a chunk of a long one.
SHORTEST = "shortest-prefill-first"
# For each tree.
SHRINK = "LAPROX_SHRINK" in os.environ
EXAMPLES, STEPS = int(os.environ.get("LAPROX_EXAMPLES") or 80), 40


def check(scheduler: Scheduler) -> None:
    """Every slot in one place, the tree's sums right, and in every slot what belongs there."""
    allocator = scheduler.token_to_kv_pool_allocator
    assert allocator.free_group is None
    places = allocator.get_all_free_pages().tolist()
    shared = check_tree(scheduler)
    places += shared.values()
    for req in scheduler.live():
        places += check_request(scheduler, req, shared)
    assert sorted(places) == list(range(1, allocator.size + 1)), "a slot is lost or in two places"


def check_tree(scheduler: Scheduler) -> dict[tuple[int, ...], int]:
    """Slot of every token prefix in the tree, by what every core of it answers."""
    tree, core = scheduler.tree_cache, scheduler.tree_cache.tree_core
    root = tree.root_node_handle()
    shared = {}
    for tokens in {tuple(req.true_ids) for req in scheduler.arrived}:
        found, node, _ = core.match_full_device_prefix(RadixKey(array("q", tokens)))
        path = core.collect_full_device_indices(node, root)[:found].tolist()
        shared |= {tokens[: i + 1]: slot for i, slot in enumerate(path)}
    for prefix, slot in shared.items():
        check_cells(scheduler, slot, prefix)
    assert sorted(tree.all_values_flatten().tolist()) == sorted(shared.values()), "KV of unknown tokens"
    locks = [req.lock.node for req in scheduler.live()] if tree.supports_prefix_sharing() else []
    # What is being copied to host memory, or back, is locked as well.
    copied = (*tree.ongoing_write_through.values(), *tree.ongoing_load_back.values())
    locks += [under_way[0] for under_way in copied]
    locked = {slot for node in locks for slot in core.collect_full_device_indices(node, root).tolist()}
    assert locked == set(shared.values()) - set(unlocked(core)), "lock without a request, or the reverse"
    surplus = sum(view.surplus for view in map(view_of, scheduler.live()) if view)
    evictable = len(shared) - len(locked) + surplus
    assert (tree.protected_size(), tree.evictable_size()) == (len(locked), evictable)
    assert tree.total_size() == (len(shared), 0)
    if not locks:
        # It takes every lock for a leak.
        tree.sanity_check()
    if scheduler.tree in ("python", "sessions"):
        check_nodes(core, locks)
        if scheduler.transfers is not None:
            check_host(scheduler, core)
    return shared


def unlocked(core) -> list[int]:
    return core.walk_for_kv_canary(unlocked_only=True, swa_resident_only=False).slot_indices.tolist()


def check_nodes(core, locks: list[int]) -> None:
    """A node is locked once for every request at it or below it; only the Python core shows its nodes."""
    expected: Counter[int] = Counter()
    for handle in locks:
        node = core.node_by_id(handle)
        while node is not core.root_node:
            expected[node.id] += 1
            node = node.parent
    stack = [core.root_node]
    while stack:
        node = stack.pop()
        for child in node.children.values():
            full = child.component(ComponentType.FULL)
            values = [value for value in (full.value, full.host_value) if value is not None]
            assert child.parent is node and values
            assert all(len(child.key) == len(value) > 0 for value in values)
            assert full.lock_ref == expected[child.id], "lock without a request, or the reverse"
            stack.append(child)


def check_host(scheduler: Scheduler, core) -> None:
    """Every slot in host memory in one place, and in each that was written what belongs there."""
    pool = scheduler.tree_cache.host_pool_group.anchor_entry.host_pool
    keys, values = (part.view(scheduler.pool.dtype) for part in pool._slots())
    held, stack = [], [(core.root_node, ())]
    while stack:
        node, prefix = stack.pop()
        for child in node.children.values():
            tokens = (*prefix, *child.key.token_ids)
            stack.append((child, tokens))
            host = child.component(ComponentType.FULL).host_value
            if host is None:
                continue
            held += host.tolist()
            if child.write_through_pending_id is None:
                for i, slot in enumerate(host.tolist(), len(prefix) + 1):
                    k, v, _ = stamp(tokens[:i])
                    assert all(map(torch.equal, scheduler.kv(slot, keys, values), (k, v))), tokens[:i]
    assert len(held) == len(set(held)) == pool.size - pool.available_size(), "host memory leaks"


def check_request(scheduler: Scheduler, req, shared: dict[tuple[int, ...], int]) -> list[int]:
    """The request's private slots, after a look into them."""
    row = scheduler.rows[req.kv.req_pool_idx]
    columns = row.tolist()
    tokens = tuple(req.true_ids)
    owned = req.kv.cache_protected_len
    for i in range(owned):
        assert columns[i] == shared[tokens[: i + 1]], "a protected column is not the tree's"
    view = view_of(req)
    private = set(range(owned, req.kv.kv_allocated_len))
    if view:
        view.check_integrity(row)
        plan = req.laprox.plan
        assert owned == (0 if scheduler.tree == "off" else view.start)
        assert plan.least <= view.slots <= plan.most and view.surplus == view.slots - plan.least
        private -= set(range(view.start, view.end))
        check_view(scheduler, view, columns, tokens, req.laprox.options.instructions.spans)
    for i in private:
        check_cells(scheduler, columns[i], tokens[: i + 1], req.rid if view and i >= view.end else "")
    held = range(view.start, view.start + view.slots) if view else ()
    return [columns[i] for i in (*private, *held)]


def check_cells(scheduler: Scheduler, slot: int, prefix: tuple[int, ...], owner: str = "") -> None:
    k, v, _ = stamp(prefix, owner)
    assert all(map(torch.equal, scheduler.kv(slot), (k, v))), prefix


def check_view(scheduler: Scheduler, view, columns: list[int], tokens: tuple[int, ...], spans) -> None:
    """Packed cells are those of the kept positions; what is protected is kept in every head."""
    positions, cu_cells = view.positions.tolist(), view.cu_cells.tolist()
    sinks = range(view.start, max(view.start, scheduler.laprox.config.sink_tokens))
    always = {*sinks, *range(view.end - scheduler.laprox.config.window, view.end)}
    always |= {i for a, b in spans for i in range(a, b) if view.start <= i < view.end}
    for cell in range(CELLS):
        kept = positions[cu_cells[cell] : cu_cells[cell + 1]]
        assert always <= set(kept) and kept == sorted(set(kept))
        for place, position in enumerate(kept, cu_cells[cell]):
            slot = columns[view.start + place // CELLS]
            expected = stamp(tokens[: position + 1])
            for held, of_token in zip(scheduler.kv(slot), expected, strict=False):
                found = held.view(CELLS, DIM)[place % CELLS]
                assert torch.equal(found, of_token.view(CELLS, DIM)[cell])


def check_decoded(scheduler: Scheduler) -> None:
    """What a decode step over views came to, against attention over the cells it should see."""
    for req, view, tokens, output in scheduler.decoded:
        expected = expected_output(view, tokens, req.rid)
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)


# Where a chat template put instructions.
SESSIONS = ("a", "b")
BEHIND = {"spans": [[3, 5], [9, 13]]}


class Machine(RuleBasedStateMachine):
    tree: str
    counts: Counter[str]

    @initialize(
        overlap=st.booleans(),
        graphs=st.booleans(),
        size=st.sampled_from([26, 26, 48, 64, 90]),
        budget=st.sampled_from([0.2, 0.5, 9]),
        most=st.sampled_from([None, 0.7, 1.0]),
        keep=st.sampled_from([0, 0, 4, 20]),
        kv_dtype=st.sampled_from([torch.float32, FP8]),
        host=st.sampled_from([0, 0, 0.8, 2, 5]),
        layout=st.sampled_from(["page_first", "layer_first"]),
        policy=st.sampled_from(["write_through", "write_back"]),
        order=st.sampled_from(["fcfs", SHORTEST]),
    )
    def start(
        self,
        overlap,
        graphs,
        size,
        budget,
        keep,
        kv_dtype=FP8,
        host=0,
        layout="page_first",
        policy="write_back",
        most=None,
        order="fcfs",
    ):
        config = replace(CONFIG, budget=budget, keep_prefix=keep)
        if self.tree != "off":
            config = replace(config, budget_max=most)
        self.scheduler = Scheduler(
            size,
            config=config,
            tree=self.tree,
            overlap=overlap,
            graphs=graphs,
            kv_dtype=kv_dtype,
            host=0 if self.tree == "off" else host,
            host_layout=layout,
            host_policy=policy,
            order={"sessions": "hrrn", "off": "fcfs"}.get(self.tree, order),
        )
        self.prompts = [(0, 1, 2)]
        # Hypothesis may leave a rule out of a run; this one is rare enough as it is.
        self.twins()

    def send(self, tokens, new, session=None, **options):
        """Unless it could never run: SGLang turns such requests away at its door."""
        if len(tokens) + new + 2 < self.scheduler.pool.size:
            self.prompts.append(tuple(tokens))
            self.scheduler.arrive(tokens, new, session if self.tree == "sessions" else None, **options)

    @rule(
        prefix=st.sampled_from(PREFIXES),
        body=st.sampled_from(BODIES),
        tail=st.lists(st.integers(0, 1), max_size=2),
        new=st.sampled_from([1, 2, 3, 7]),
        options=st.sampled_from(
            [{}, {}, {"enabled": False}, {"budget": 0.2}, {"keep_prefix": 5}, {"instructions": BEHIND}]
        ),
        session=st.sampled_from([None, *SESSIONS]),
    )
    def arrive(self, prefix, body, tail, new, options, session):
        self.send((*prefix, *body, *tail), new, session, **options)

    @precondition(lambda self: self.tree == "sessions")
    @rule(session=st.sampled_from(SESSIONS))
    def close(self, session):
        self.scheduler.tree_cache.release_radix_session(session)
        self.counts["closed"] += 1

    @rule(index=st.integers(0, 99), cut=st.integers(1, 40), new=st.sampled_from([2, 5]))
    def arrive_again(self, index, cut, new):
        self.send(self.prompts[index % len(self.prompts)][:cut], new)

    @rule(index=st.integers(0, 99), question=st.lists(st.integers(0, 3), min_size=1, max_size=4))
    def next_turn(self, index, question):
        """A conversation goes on: its prompt, its answer as it was generated, and a question."""
        ended = [req for req in self.scheduler.arrived if req.finished()]
        if ended:
            req = ended[index % len(ended)]
            self.send((*req.origin_input_ids, *req.output_ids, *question)[:50], 3, req.session_id)
            self.counts["turns"] += 1

    @rule()
    def twins(self):
        """Somebody else reads the same prompt whole, and there is little else: a view would free nothing."""
        self.drain()
        self.scheduler.tree_cache.evict(EvictParams(num_tokens=self.scheduler.pool.size))
        self.send(BODIES[-1], 2 + self.scheduler.enable_overlap, enabled=False)
        self.turn(1024)
        self.send(BODIES[-1], 2)
        self.turn(1024)

    @rule(chunk=st.sampled_from([1, 2, 5, 5, 11, 1024]), turns=st.integers(1, 3))
    def step(self, chunk, turns):
        for _ in range(turns):
            self.turn(chunk)

    @precondition(lambda self: self.scheduler.transfers)
    @rule(count=st.integers(1, 3))
    def copies_end(self, count):
        self.scheduler.transfers.end(count)

    @rule()
    def step_and_retract(self):
        self.turn(1024, retract=True)

    def drain(self):
        for _ in range(500):
            if self.scheduler.idle():
                return
            if self.turn(1024) is None and self.scheduler.transfers:
                # It may wait for room that a copy locks.
                self.scheduler.transfers.end(1)
        raise AssertionError("the scheduler got stuck")

    def turn(self, chunk, retract=False):
        before = self.scheduler.chunked_req
        batch = self.scheduler.step(chunk, retract)
        goes_on = before is not None and self.scheduler.chunked_req is before
        reqs = batch.reqs if batch else []
        self.counts["beside_a_chunk"] += goes_on and before in reqs and len(reqs) > 1
        check_decoded(self.scheduler)
        check(self.scheduler)
        return batch

    @rule()
    def retract_everything(self):
        self.scheduler.retract_everything()

    @rule(index=st.integers(0, 9))
    def abort(self, index):
        reqs = self.scheduler.waiting_queue + self.scheduler.live()
        if reqs:
            req = reqs[index % len(reqs)]
            self.counts["aborted_waiting"] += not req.kv.holds_kv
            self.scheduler.abort(req)

    @rule(chunk=st.integers(1, 4), prefix=st.sampled_from(PREFIXES))
    def abort_mid_prefill(self, chunk, prefix):
        if not self.scheduler.chunked_req:
            self.send((*prefix, *BODIES[-1]), 4)
            self.turn(chunk)
        if self.scheduler.chunked_req:
            self.scheduler.abort(self.scheduler.chunked_req)

    @precondition(lambda self: self.tree != "off")
    @rule(tokens=st.integers(1, 30))
    def evict(self, tokens):
        self.scheduler.tree_cache.evict(EvictParams(num_tokens=tokens))

    @precondition(lambda self: self.tree != "off")
    @rule(tokens=st.integers(1, 30))
    def pool_short(self, tokens):
        """Somebody wants slots: histories go first, then what views hold beyond their guarantees."""
        scheduler = self.scheduler
        cache, available = scheduler.tree_cache, scheduler.token_to_kv_pool_allocator.available_size
        free, before, surplus = cache.free_slots(), available(), cache._readers.surplus
        cache.evict_for_alloc(EvictParams(num_tokens=tokens))
        self.counts["gave_when_short"] += cache._readers.surplus < surplus
        # It may have waited for copies that locked some.
        assert available() >= min(before + tokens, free) and cache.free_slots() >= free

    @precondition(lambda self: self.scheduler.tree_cache._readers.surplus)
    @rule(index=st.integers(0, 9), share=st.floats(0, 1))
    def shrink_now(self, index, share):
        cache = self.scheduler.tree_cache
        reqs = [req for req in self.scheduler.live() if (view := view_of(req)) and view.surplus]
        req = reqs[index % len(reqs)]
        view = view_of(req)
        slots = view.slots - 1 - int(share * (view.surplus - 1))
        free = cache.free_slots()
        cache.exchange(req, cache.shrink_view(req, slots), view.own[slots:])
        assert view_of(req).slots == slots and cache.free_slots() == free
        self.counts["shrunk_now"] += 1

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
        self.drain()
        scheduler.settle()
        # A look at what was copied may begin to write more, ahead of evictions.
        while scheduler.transfers and scheduler.tree_cache.copying:
            scheduler.settle()
        if self.tree != "off":
            scheduler.tree_cache.evict(EvictParams(num_tokens=scheduler.pool.size))
        if scheduler.transfers:
            host = scheduler.tree_cache.host_pool_group
            scheduler.tree_cache.evict_host(host.size)
            assert host.available_size() == host.size, "host memory leaks"
            self.counts["written"] += scheduler.transfers.written
            self.counts["loaded"] += scheduler.transfers.loaded
        assert scheduler.token_to_kv_pool_allocator.available_size() == scheduler.pool.size
        self.counts.update(scheduler.laprox.report.totals.released)
        self.counts["pruned"] += scheduler.laprox.report.totals.prunes
        self.counts["shrinks"] += scheduler.laprox.report.totals.shrinks
        self.counts["staged"] += scheduler.laprox.report.totals.staged
        self.counts["no_room"] += scheduler.no_room


# The tree in Python with sessions, which are all that it differs by then.
@pytest.mark.parametrize(
    "tree", ["rust", *(pytest.param(tree, marks=pytest.mark.full) for tree in ("sessions", "off"))]
)
def test_every_slot_is_in_exactly_one_place(tree, seed, monkeypatch):
    # Of pools as small as these a thirty-second is nothing.
    monkeypatch.setattr(tier, "AHEAD", 1 / 4)
    machine = type("Machine", (Machine,), {"tree": tree, "counts": Counter()})
    settings = hypothesis.settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        report_multiple_bugs=False,
        # Shrinking what fails takes minutes; the seed is printed, and a longer run may take them.
        phases=[phase for phase in hypothesis.Phase if SHRINK or phase is not hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    with sglang_context():
        # Rare are a view for which there is no room, and one that is packed over its own prompt: one run that
        # comes to both, whatever the seed.
        tight = machine()
        tight.start(overlap=False, graphs=False, size=26, budget=0.5, keep=0)
        tight.drain()
        tight.scheduler.tree_cache.evict(EvictParams(num_tokens=26))
        tight.send(BODIES[-1], 2)
        tight.teardown()
        if tree != "off":
            # So are views that still can give when slots are wanted.
            roomy = machine()
            roomy.start(overlap=True, graphs=True, size=90, budget=0.2, keep=0, most=1.0)
            roomy.drain()
            roomy.send(BODIES[-1], 7)
            roomy.turn(1024)
            roomy.shrink_now(index=0, share=0.5)
            roomy.pool_short(tokens=90)
            roomy.teardown()
        if tree == "rust":
            # Short prompts come in beside a chunk that is not the last.
            shared = machine()
            shared.start(overlap=False, graphs=False, size=90, budget=0.2, keep=0, order=SHORTEST)
            shared.drain()
            shared.send((*BODIES[-1], *BODIES[-1], 1, 0, 1), 2)
            shared.turn(5)
            shared.send((3, 2), 2)
            shared.turn(8)
            shared.teardown()
        # Another seed for each: both cores would only be led the same way.
        machine = hypothesis.seed(seed + len(tree))(machine)
        hypothesis.stateful.run_state_machine_as_test(machine, settings=settings)
    print(machine.counts)
    # A test of memory that never pruned, retracted or aborted would prove nothing.
    events = "pruned turns finished retracted aborted_waiting aborted_mid_prefill aborted_running".split()
    # Without a tree every view is packed over its own prompt, and there is always room for it.
    if tree != "off":
        events += "shrunk_now gave_when_short staged no_room written loaded".split()
    if tree == "sessions":
        events.append("closed")
    if tree == "rust":
        events.append("beside_a_chunk")
    for event in events:
        assert machine.counts[event] >= 1, machine.counts
