"""Busy leak check: what stock counts as slots, and whether all ranks hold the same."""

import hashlib

import torch
from sglang.srt.plugins.hook_registry import HookType
from sglang.srt.runtime_context import get_parallel

from laprox_patches.seam import Seam
from laprox_sglang.ports import LeakCheck, Parallel, Req
from laprox_sglang.views.state import view_of


def without_spared(result: tuple[int, int], self: LeakCheck) -> tuple[int, int]:
    """Stock counts logical columns as slots; of a pruned request that is too many.

    What its view holds beyond what was promised is counted once more, as evictable.
    """
    full, swa = result
    views = [view_of(req) for req in self._requests_owning_rows()]
    return full - sum(view.spared + view.surplus for view in views if view), swa


def compare_ranks(result: None, self: LeakCheck) -> None:
    """Asserts that the ranks which share the heads decided alike: the same slots, views and rows.

    It runs where stock's own check does, with SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY, and waits for the
    device and for all ranks.
    """
    parallel: Parallel = get_parallel()
    if parallel.attn_tp_size == 1:
        return
    rows = self.req_to_token_pool.req_to_token
    # Rows of views are written on the forward stream.
    torch.get_device_module(rows.device).synchronize()
    held: dict[str, object] = {
        "available": self.token_to_kv_pool_allocator.available_size(),
        "evictable": self.tree_cache.evictable_size(),
        "protected": self.tree_cache.protected_size(),
    }
    held |= {req.rid: said_of(req, rows) for req in self._requests_owning_rows()}
    group = parallel.attn_tp_group
    everyones: list[dict[str, object]] = [{}] * group.world_size
    torch.distributed.all_gather_object(everyones, held, group=group.cpu_group)
    for rank, others in enumerate(everyones):
        assert others == held, f"rank {parallel.attn_tp_rank} holds {held}, and rank {rank} {others}"


def said_of(req: Req, rows: torch.Tensor) -> object:
    """Where a request's view is, and what stands in its row."""
    view, length = view_of(req), req.kv.kv_allocated_len
    row = rows[req.kv.req_pool_idx, :length].cpu().numpy().tobytes()
    where = (view.start, view.slots, view.end) if view else None
    return where, length, hashlib.sha256(row).hexdigest()


CHECKER = "sglang.srt.managers.scheduler_components.invariant_checker.SchedulerInvariantChecker."
SEAMS = (
    Seam(CHECKER + "_get_total_uncached_sizes", without_spared, HookType.AFTER, ("self",), "Tuple[int, int]"),
    Seam(CHECKER + "self_check_during_busy", compare_ranks, HookType.AFTER, ("self",)),
)
