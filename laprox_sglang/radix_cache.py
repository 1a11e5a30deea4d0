"""Prefix caches in which what is pruned never enters the tree."""

from typing import Any

import torch
from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache, InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.chunk_cache import ChunkCache
from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey

from laprox_sglang.report import Totals
from laprox_sglang.segment import RequestState


def held_columns(state: RequestState, cached: int, length: int) -> list[tuple[int, int]]:
    """Columns of a request's row that hold slots of its own: all of [cached, length) but the pruned."""
    segment = state.segment
    if segment is None:
        return [(cached, length)]
    return [(cached, segment.start + segment.slots), (segment.end, length)]


def release(
    cache: BasePrefixCache, totals: Totals, req: Any, state: RequestState, is_insert: bool, length: int
) -> None:
    """Frees every slot that a request to be pruned holds beyond what the tree owns."""
    row = cache.req_to_token_pool.req_to_token[req.req_pool_idx]
    columns = held_columns(state, req.cache_protected_len, length)
    slots = torch.cat([row[start:end] for start, end in columns])
    cache.token_to_kv_pool_allocator.free(slots.to(torch.int64))
    totals.add_released(req, is_insert)
    state.release(req.cache_protected_len + len(slots))


class LaproxChunkCache(ChunkCache):
    """For ``--disable-radix-cache``: as stock, except that pruned columns hold nothing."""

    def __init__(self, params: Any, totals: Totals) -> None:
        super().__init__(params)
        self.totals = totals

    def cache_finished_req(self, req: Any, is_insert: bool = True, *, kv_len_to_handle: int) -> None:
        release(self, self.totals, req, req.laprox, is_insert, kv_len_to_handle)


class LaproxRadixCache(RadixCache):
    """Stock tree for shared tokens and for requests that stay whole.

    Of a request that is going to be pruned only the part before its private range is inserted.
    """

    def __init__(self, params: Any, totals: Totals) -> None:
        super().__init__(params)
        self.totals = totals

    def cache_unfinished_req(self, req: Any, chunked: bool = False) -> None:
        state: RequestState = req.laprox
        if not state.will_prune:
            super().cache_unfinished_req(req, chunked)
            return
        end = req.extend_range.end
        self._insert_intact(req, state, end, chunked)
        row = self.req_to_token_pool.req_to_token[req.req_pool_idx]
        req.prefix_indices = row[:end].to(torch.int64, copy=True)

    def cache_finished_req(self, req: Any, is_insert: bool = True, *, kv_len_to_handle: int) -> None:
        state: RequestState = req.laprox
        if not state.will_prune:
            self.totals.add_released(req, is_insert)
            super().cache_finished_req(req, is_insert, kv_len_to_handle=kv_len_to_handle)
            state.release(kv_len_to_handle)
            return
        if is_insert:
            self._insert_intact(req, state, kv_len_to_handle)
        release(self, self.totals, req, state, is_insert, kv_len_to_handle)
        self.dec_lock_ref(req.last_node)

    def _insert_intact(self, req: Any, state: RequestState, end: int, chunked: bool = False) -> None:
        """Moves the columns before the private range into the tree, as far as they are filled."""
        assert state.plan is not None
        end = min(end, state.plan.start)
        owned = req.cache_protected_len
        if end <= owned:
            return
        row = self.req_to_token_pool.req_to_token[req.req_pool_idx]
        key = RadixKey(req.full_untruncated_fill_ids[:end], req.extra_key)
        value = row[:end].to(torch.int64, copy=True)
        priority = getattr(req, "priority", 0) or 0
        result = self.insert(InsertParams(key=key, value=value, chunked=chunked, priority=priority))
        # Somebody else may have inserted the same tokens meanwhile: their slots win, ours are freed.
        self.token_to_kv_pool_allocator.free(value[owned : result.prefix_len])
        match = self.match_prefix(MatchPrefixParams(key=key))
        assert len(match.device_indices) == end
        self.req_to_token_pool.write((req.req_pool_idx, slice(owned, end)), match.device_indices[owned:])
        self.dec_lock_ref(req.last_node)
        self.inc_lock_ref(match.last_device_node)
        req.last_node = match.last_device_node
        req.cache_protected_len = end


def make_cache(context: Any) -> BasePrefixCache:
    """SGLang's factory for ``--radix-cache-backend laprox``."""
    totals = context.tp_worker.model_runner.attn_backend.laprox.totals
    kind = LaproxChunkCache if context.disable_radix_cache else LaproxRadixCache
    return kind(context.params, totals)
