"""Prefix cache of a server that prunes: all that touches SGLang's tree.

The tree is stock and exact. A pruned request puts its whole prompt into it, copies the kept cells into a
view in slots of its own, and keeps its lock up to the column where the view begins. What the view
stands for stays in the tree as ordinary, evictable cache.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
from sglang.srt.mem_cache.common import evict_from_tree_cache
from sglang.srt.mem_cache.radix_cache import RadixKey

from laprox_sglang.cache.readers import Readers
from laprox_sglang.cache.tier import TieredCache
from laprox_sglang.options.server import Config
from laprox_sglang.ports import Evict, Key, Kv, Match, MatchParams, Node, Req
from laprox_sglang.report.reporter import Reporter
from laprox_sglang.views.plan import Plan
from laprox_sglang.views.pressure import first_slots
from laprox_sglang.views.state import plan_of, state_of, view_of
from laprox_sglang.views.view import View

Ranges = list[tuple[int, int]]


class Opened(NamedTuple):
    """Room for a view: the lock on what it stands for has been given up.

    Attributes:
        slots: int64 ``[m]``.
        staged: they may be among those that the view is packed from.
        freed: slots that others can have now and could not before.
    """

    slots: torch.Tensor
    staged: bool
    freed: int


class LaproxCache(TieredCache):
    """For ``--disable-radix-cache`` too: the tree holds nothing then, and what a view stands for is freed.

    Attributes:
        shrink_view: makes a request's view one of so many slots; of ``Runtime``.
    """

    config: Config
    report: Reporter
    shrink_view: Callable[[Req, int], View]
    _readers: Readers

    # A prompt comes in.

    def match_prefix(self, params: MatchParams) -> Match:
        if params.req is not None:
            params = MatchPrefixParams(
                key=self._capped(params.key, params.req), cow_mamba=params.cow_mamba, req=params.req
            )
        return super().match_prefix(params)

    def _capped(self, key: Key, req: Req) -> Key:
        """The queries of the window must be computed, whatever the tree holds."""
        plan = plan_of(req, self.config)
        limit = plan.end - self.config.longest_window
        if not plan.pruned or len(key) <= limit:
            return key
        capped: Key = RadixKey(key.token_ids, key.extra_key, key.is_bigram, limit, key.cache_salt)
        return capped

    def take(self, plan: Plan) -> torch.Tensor | None:
        """Slots for a view of a prompt that is about to enter the tree; None if there are not as many.

        They are never those that the prompts of this batch lie in: these are locked, or not in the tree yet.
        """
        free = self.free_slots()
        if self.disable or free < plan.least:
            return None
        slots = self._first_slots(plan, free) if plan.surplus else plan.least
        evict_from_tree_cache(self, slots)
        return self.token_to_kv_pool_allocator.alloc(slots)

    def _first_slots(self, plan: Plan, free: int) -> int:
        # Behind the view its prompt is evictable.
        room = free + plan.length - plan.least
        return min(free, first_slots(plan.least, plan.most, room, self.token_to_kv_pool_allocator.size))

    def publish(self, req: Req) -> None:
        """As stock after the forward pass, but before it, and once.

        Slots that turn out to be duplicates are free from here on and still written by this forward pass:
        nothing may allocate until it is launched.
        """
        self._to_write += self._insert(req, req.extend_end)
        if self.enable_session_radix_cache:
            # Not only once it has finished, as stock does: behind its view the prompt can be evicted before.
            self.session_refs.register_session_ref(req, req.last_node)

    def checkpoint(self, req: Req, *, up_to: int, **kwargs: bool) -> None:
        view = view_of(req)
        if view is None:
            self._insert(req, up_to, **kwargs)
        elif req.finished():
            # What was generated over a view is never cached. The prompt has just been used, though: stock
            # says so by inserting it again.
            key = self._key(req, view.end)
            self.touch_prefix(key)
            if self.writes_late:
                _, node, _ = self.tree_core.match_full_device_prefix(key)
                self._use(req, node, key, node, 0)

    def _insert(self, req: Req, up_to: int, **kwargs: bool) -> list[Node]:
        """Stock's; but a prompt that is to have a view is held back from host memory (``back_up``)."""
        plan, before = state_of(req).plan, req.last_node
        # What came back from host memory is of its own conversation.
        shared = max(0, req.kv.cache_protected_len - req.cached_tokens_host)
        held_back: list[Node] | None = [] if plan is not None and plan.pruned else None
        self._held_back = held_back
        super().checkpoint(req, up_to=up_to, **kwargs)
        self._held_back = None
        if self.writes_late:
            self._use(req, req.last_node, self._key(req, up_to), before, shared)
        return held_back or []

    def _key(self, req: Req, length: int) -> Key:
        key: Key = RadixKey(
            req.full_untruncated_fill_ids, req.extra_key, limit=length, cache_salt=req.cache_salt
        )
        return key

    # Its view.

    def free_slots(self) -> int:
        """Slots that a request can have: those that nobody holds, and the evictable ones."""
        return self.token_to_kv_pool_allocator.available_size() + self.evictable_size()

    def evictable_size(self) -> int:
        """What views hold beyond what was promised is cache too, evicted behind all that the tree holds."""
        return super().evictable_size() + self._readers.surplus

    def evict_for_alloc(self, params: Evict, **given: Callable[[], bool] | None) -> object:
        available = self.token_to_kv_pool_allocator.available_size
        wanted = available() + params.num_tokens
        evicted = super().evict_for_alloc(params, **given)
        if available() < wanted and self._readers.surplus:
            self._shrink(wanted - available())
        return evicted

    def _shrink(self, short: int) -> None:
        for req, view, slots in self._readers.give_back(short):
            self.exchange(req, self.shrink_view(req, slots), view.own[slots:])

    def open_view(self, req: Req, plan: Plan, taken: torch.Tensor | None, reserve: int) -> Opened | str:
        """Moves a request's lock up to where its view begins, and takes slots for it if it has none yet.

        Args:
            taken: by ``take``.
            reserve: slots that must be left beside the view.

        Returns:
            Where the prompt must be left whole, which it then is, the reason: ``no_room`` if others hold it
            as well, so that the view would free less than it takes, and the pool has no room for that;
            ``not_in_tree`` if the tree does not hold all of it, so that its slots are not the tree's to free.
        """
        had = 0 if taken is None else len(taken)
        before = self.free_slots() + had
        if self.disable:
            # Nobody else reads them: a part of its own slots is the view's, over which it is packed.
            own = self._columns(req)[plan.start : plan.end].long()
            self.token_to_kv_pool_allocator.free(own[plan.least :])
            self.grew = True
            return Opened(own[: plan.least], True, self.free_slots() - before)
        allocator = self.token_to_kv_pool_allocator
        # What it has beyond what was promised, others can have as well.
        reason = self._move_lock(req, plan, plan.least - had + reserve)
        if reason is not None:
            if taken is not None:
                allocator.free(taken)
            return reason
        staged = False
        if taken is None:
            # What is evicted may be what the view is packed from, and then there is nothing to write.
            staged = allocator.available_size() < plan.least
            if staged:
                self._to_write.clear()
            evict_from_tree_cache(self, plan.least)
            taken = allocator.alloc(plan.least)
        if taken is None:
            self._take_back(req, plan)
            return "no_room"
        self.grew = True
        return Opened(taken, staged, self.free_slots() - before)

    def _columns(self, req: Req) -> torch.Tensor:
        """int32 ``[context]``, slot of each logical column of the request's row."""
        return self.req_to_token_pool.req_to_token[req.kv.req_pool_idx]

    def _move_lock(self, req: Req, plan: Plan, needed: int) -> str | None:
        """Why the lock could not be moved; None if it was.

        Args:
            needed: slots that others must be able to have then, if the view frees less than it has.
        """
        start = self._node_at(req, plan.start)
        if start is None or req.kv.cache_protected_len < plan.end:
            return "not_in_tree"
        upper, deep = self.lock(start), req.last_node
        short = self._unlock(req) < plan.least and self.free_slots() < needed
        if short and self.copying:
            # What is copied to host memory or back is locked for as long: rather wait than leave it whole.
            req.lock = self.lock(deep)
            self.wait_for_copies()
            short = self._unlock(req) < plan.least and self.free_slots() < needed
        if short:
            req.lock = self.lock(deep)
            self.unlock(upper)
            return "no_room"
        req.lock, req.last_node, req.kv.cache_protected_len = upper, start, plan.start
        return None

    def _unlock(self, req: Req) -> int:
        """Gives up the request's lock; how many slots are evictable now and were not before."""
        evictable = self.evictable_size()
        self.unlock(req.lock)
        return self.evictable_size() - evictable

    def _node_at(self, req: Req, length: int) -> Node | None:
        """The node that ends behind ``length`` tokens of the prompt; None if the tree does not hold them."""
        if length == 0:
            return self.root_node_handle(req.extra_key)
        match = super().match_prefix(MatchPrefixParams(key=self._key(req, length)))
        return match.last_device_node if match.device_prefix_len == length else None

    def _take_back(self, req: Req, plan: Plan) -> None:
        """Makes the prompt the request's again: eviction freed less than the tree had counted.

        What was evicted of it is among the free slots, unwritten: nothing has been launched since.
        """
        match = super().match_prefix(MatchPrefixParams(key=self._key(req, plan.end)))
        held, upper = match.device_prefix_len, req.lock
        req.lock = self.lock(match.last_device_node)
        self.unlock(upper)
        req.last_node, req.kv.cache_protected_len = match.last_device_node, held
        if held == plan.end:
            return
        allocator = self.token_to_kv_pool_allocator
        free, evicted = allocator.alloc(allocator.available_size()), self._columns(req)[held : plan.end]
        assert free is not None
        others = free[~torch.isin(free, evicted)]
        assert len(free) - len(others) == len(evicted), "slots of a prompt were given to somebody else"
        allocator.free(others)

    def exchange(self, req: Req, view: View | None, freed: torch.Tensor | None = None) -> None:
        """Lets a request read ``view`` of its prompt from now on, or none; nothing else assigns a view.

        What is enqueued reads the view before it, so ``view`` must have been enqueued behind that, and slots
        may be given back at once: whoever writes to them is enqueued later still.

        Args:
            freed: int64, slots of the view before it that ``view`` does not have; they are given back.
        """
        before = state_of(req).exchange(view)
        could_have = self._readers.surplus
        self._readers.exchange(req, before, view)
        self.report.exchanged(req, before, view)
        if freed is not None:
            self.token_to_kv_pool_allocator.free(freed)
            # Of a request that ends SGLang knows by itself.
            self.grew |= view is not None and len(freed) > could_have - self._readers.surplus

    # It leaves.

    def claim_kv_row(self, req: Req) -> bool:
        state = state_of(req)
        state.held = req.owned_kv_len() - (state.view.spared if state.view else 0)
        return super().claim_kv_row(req)

    def free_kv_row(self, kv: Kv, ranges: Ranges) -> None:
        view = self._readers.view_in(kv.req_pool_idx)
        if view is not None:
            # Its slots are given back with the view: the row may still be written on the forward stream.
            ranges = without(ranges, view.start, view.end)
        super().free_kv_row(kv, ranges)

    def on_release(self, req: Req, *, checkpointed: bool) -> None:
        super().on_release(req, checkpointed=checkpointed)
        state = state_of(req)
        self.report.released(req)
        if state.view is not None:
            self.exchange(req, None, state.view.own)
        state.release()

    def reset(self) -> None:
        self._readers = Readers()
        super().reset()

    def check_integrity(self) -> None:
        """Asserts that the tree is whole, that its sums are those of its nodes, and that views are whole."""
        surplus = 0
        for row in self._readers.rows():
            view = self._readers.view_in(row)
            assert view is not None, "a request is said to read a view, and has none"
            view.check_integrity(self.req_to_token_pool.req_to_token[row])
            surplus += view.surplus
        assert surplus == self._readers.surplus
        if not self.disable:
            self.sanity_check()
            assert self.evictable_size() - surplus + self.protected_size() == self.total_size()[0]


def without(ranges: Ranges, start: int, end: int) -> Ranges:
    """``ranges`` without the columns [start, end)."""
    pieces = [piece for a, b in ranges for piece in ((a, min(b, start)), (max(a, end), b))]
    return [(a, b) for a, b in pieces if a < b]
