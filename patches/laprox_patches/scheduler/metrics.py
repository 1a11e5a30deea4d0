"""Scheduler: what it says about itself, in ``/server_info``, in ``/metrics`` and as events."""

import time
from importlib.metadata import version

import msgspec
import zmq
from sglang.srt.arg_groups.overrides import resolved_view
from sglang.srt.plugins.hook_registry import HookType
from sglang.srt.runtime_context import get_parallel

from laprox_patches.scheduler.step import runtime
from laprox_patches.seam import Seam
from laprox_sglang.ports import Batch, InternalState, Parallel, Scheduler
from laprox_sglang.report.endpoint import endpoint_of
from laprox_sglang.report.events import Publisher, Start
from laprox_sglang.report.totals import Pool

# How often a busy scheduler publishes; one that becomes idle does so at once.
SECONDS = 0.1


def open_reports(result: None, self: Scheduler) -> None:
    """Opens what is written to; SGLang has made its own metrics, and said where values are kept."""
    laprox = runtime(self)
    # prometheus_client decides on import where it keeps values, so SGLang has to set that first.
    if self.metrics_reporter.current_scheduler_metrics_enabled:
        from laprox_sglang.report.metrics import Metrics

        labels, layers = self.metrics_collector.labels, laprox.pool.keys.shape[1]
        laprox.report.metrics = Metrics(labels, laprox.report, laprox.slot_bytes, layers)
        laprox.report.refused.export(labels)
        publish(self)
    # All ranks that share the heads see the same requests: the first of them tells.
    if laprox.config.events is not None and laprox.ranks.index == 0:
        # The number of the replica. Ranks of attention data parallelism, which was not tried, have the same:
        # all but the first find the address taken, and the start ends with that line.
        parallel: Parallel = get_parallel()
        replica = parallel.dp_rank or 0
        laprox.report.events = open_events(self, endpoint_of(laprox.config.events, replica))


def open_events(scheduler: Scheduler, endpoint: str) -> Publisher:
    laprox = runtime(scheduler)
    try:
        events = Publisher(endpoint)
    except zmq.ZMQError as error:
        # Not an Exception: SGLang would log a traceback of it.
        raise SystemExit(f"laprox: --laprox-events {endpoint} cannot be had: {error}") from None
    layers, heads = laprox.pool.keys.shape[1:3]
    about = Start(
        seq=0,
        time=time.time(),
        versions={package: version(package) for package in ("laprox-sglang", "sglang")},
        model=resolved_view(scheduler.server_args).served_model_name,
        slots=scheduler.max_total_num_tokens,
        slot_bytes=laprox.slot_bytes,
        layers=layers,
        heads=heads * laprox.ranks.size,
        config=msgspec.to_builtins(laprox.config),
    )
    events.start(about)
    return events


def pool_of(scheduler: Scheduler) -> Pool:
    host = scheduler.tree_cache.host_pool_group
    return Pool(
        scheduler.max_total_num_tokens,
        scheduler.token_to_kv_pool_allocator.available_size(),
        scheduler.tree_cache.evictable_size(),
        *((host.size, host.available_size()) if host is not None else ()),
    )


def publish(self: Scheduler) -> None:
    """Brings ``/metrics`` up to date."""
    laprox = runtime(self)
    if laprox.report.metrics is not None:
        laprox.report.metrics.publish(pool_of(self), laprox.pruner.stages.seconds())


def publish_now_and_then(done: None, self: Scheduler, batch: Batch, result: object) -> None:
    metrics = runtime(self).report.metrics
    if metrics is not None and time.monotonic() - metrics.published > SECONDS:
        publish(self)


def add_totals(result: InternalState, self: Scheduler, recv_req: object) -> None:
    laprox, pool = runtime(self), pool_of(self)
    result.internal_state["laprox"] = laprox.report.to_dict() | {
        "config": msgspec.to_builtins(laprox.config),
        "stage_seconds": laprox.pruner.stages.seconds(),
        "slot_bytes": laprox.slot_bytes,
        "available_slots": pool.available,
        "evictable_slots": pool.evictable,
        "pinned_slots": pool.pinned,
        "host_slots": pool.host_slots,
        "host_available_slots": pool.host_available,
        "protected_slots": self.tree_cache.protected_size(),
        "running": len(self.running_batch.reqs),
        # Logical: what the running requests would hold if nothing had been pruned.
        "running_tokens": sum(req.kv.kv_allocated_len for req in self.running_batch.reqs),
        "waiting": len(self.waiting_queue),
        "prefilling": int(self.chunked_req is not None),
    }
    publish(self)


TARGET = "sglang.srt.managers.scheduler.Scheduler."
SEAMS = (
    Seam(TARGET + "init_metrics_reporter", open_reports, HookType.AFTER, ("self",), "None"),
    Seam(TARGET + "process_batch_result", publish_now_and_then, HookType.AFTER, ("self", "batch", "result")),
    Seam(TARGET + "on_idle", publish, HookType.BEFORE, ("self",)),
    Seam(TARGET + "get_internal_state", add_totals, HookType.AFTER, ("self", "recv_req")),
)
