"""Scheduler: prunes around each forward pass, and reports."""

from collections.abc import Callable
from typing import Any

import msgspec
from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.seam import Seam
from laprox_sglang.runtime import Runtime


def runtime(scheduler: Any) -> Runtime:
    found: Runtime = scheduler.tp_worker.model_runner.attn_backend.laprox
    return found


def run_batch(original: Callable[..., Any], self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    laprox = runtime(self)
    laprox.begin(batch)
    result = original(self, batch, *args, **kwargs)
    # Between the launch and the WAR barrier: later work of the schedule stream waits for the packing.
    laprox.finish(self)
    return result


def add_totals(result: Any, self: Any, recv_req: Any) -> None:
    laprox = runtime(self)
    result.internal_state["laprox"] = laprox.totals.to_dict() | {
        "config": msgspec.to_builtins(laprox.config),
        "available_slots": self.token_to_kv_pool_allocator.available_size(),
        "evictable_slots": self.tree_cache.evictable_size(),
        "running": len(self.running_batch.reqs),
        # Logical: what the running requests would hold if nothing had been pruned.
        "running_tokens": sum(req.kv.kv_allocated_len for req in self.running_batch.reqs),
        "waiting": len(self.waiting_queue),
        "prefilling": int(self.chunked_req is not None),
    }


TARGET = "sglang.srt.managers.scheduler.Scheduler."
RESULTS = "sglang.srt.managers.utils"
SEAMS = (
    Seam(
        TARGET + "run_batch",
        run_batch,
        HookType.AROUND,
        ("self", "batch", "pp_proxy_tensors"),
        f"Union[{RESULTS}.GenerationBatchResult, {RESULTS}.EmbeddingBatchResult]",
    ),
    Seam(TARGET + "get_internal_state", add_totals, HookType.AFTER, ("self", "recv_req")),
)
