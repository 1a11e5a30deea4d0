"""Prefix cache in which what is pruned never enters the tree (SGLang 0.5.22, 0.5.23)."""

from typing import Any

from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache
from sglang.srt.mem_cache.registry import create_unified_radix_cache
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from laprox_sglang.report import Totals
from laprox_sglang.segment import RequestState


def without(ranges: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    """``ranges`` without the columns [start, end)."""
    pieces = [piece for a, b in ranges for piece in ((a, min(b, start)), (max(a, end), b))]
    return [(a, b) for a, b in pieces if a < b]


class LaproxCache(UnifiedRadixCache):
    totals: Totals
    _leaving: RequestState | None = None

    def checkpoint(self, req: Any, *, up_to: int, **kwargs: Any) -> None:
        state: RequestState = req.laprox
        if state.will_prune:
            assert state.plan is not None
            up_to = min(up_to, state.plan.start)
            # Shorter than what the tree owns: it would give that up.
            if up_to <= req.kv.cache_protected_len:
                return
        super().checkpoint(req, up_to=up_to, **kwargs)

    def claim_kv_row(self, req: Any) -> bool:
        # The only word about the request before its row is freed: what follows names columns only.
        self._leaving = req.laprox
        self._held = req.kv.kv_allocated_len - (self._leaving.segment.freed if self._leaving.segment else 0)
        return super().claim_kv_row(req)

    def free_kv_row(self, kv: Any, ranges: list[tuple[int, int]]) -> None:
        segment = self._leaving.segment if self._leaving else None
        if segment is not None:
            ranges = without(ranges, segment.start + segment.slots, segment.end)
        super().free_kv_row(kv, ranges)

    def on_release(self, req: Any, *, checkpointed: bool) -> None:
        super().on_release(req, checkpointed=checkpointed)
        self.totals.add_released(req, checkpointed)
        req.laprox.release(self._held)
        self._leaving = None


def make_cache(context: Any) -> BasePrefixCache:
    cache = create_unified_radix_cache(context, cache_class=LaproxCache)
    cache.totals = context.tp_worker.model_runner.attn_backend.laprox.totals
    return cache
