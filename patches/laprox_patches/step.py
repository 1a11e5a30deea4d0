"""Scheduler: each forward pass between ``begin`` and ``finish``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.seam import Seam
from laprox_sglang.runtime import Chunk, Runtime
from laprox_sglang.views.state import plan_of, state_of, view_of


def runtime(scheduler: Any) -> Runtime:
    found: Runtime = scheduler.tp_worker.model_runner.attn_backend.laprox
    return found


def run_batch(original: Callable[..., Any], self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    laprox = runtime(self)
    if batch.forward_mode.is_extend():
        laprox.begin([chunk_of(req, laprox) for req in batch.reqs], self.tree_cache)
    elif batch.forward_mode.is_decode():
        laprox.decode.begin(
            [view_of(req) for req in batch.reqs], [req.kv.kv_allocated_len for req in batch.reqs]
        )
    result = original(self, batch, *args, **kwargs)
    if batch.forward_mode.is_extend():
        finish(self, batch, laprox)
    return result


def chunk_of(req: Any, laprox: Runtime) -> Chunk:
    plan = plan_of(req, laprox.config)
    return Chunk(req, state_of(req), req.kv.req_pool_idx, req.prefix_len, req.extend_end, plan)


def finish(self: Any, batch: Any, laprox: Runtime) -> None:
    """Makes views, before anything is launched behind the prefill.

    The first decode step, which overlap scheduling launches before it looks at the prefill's result,
    already reads them.
    """
    slots = laprox.finish(self.tree_cache, promised(self, batch), partial(forward_stream, self))
    if not slots:
        return
    # Stock clears this flag only when a request ends. A view has just freed slots, so others may be let in
    # now.
    self.running_batch.batch_is_full = False
    # The rows of req_to_token change after the forward pass, so the event that says "its reads are done"
    # comes too early for this step. Without it SGLang waits for the whole pass.
    self.tp_worker.last_shared_read_runner.shared_read_done_event = None
    if self.enable_overlap:
        # These tensors are used on two streams; SGLang keeps such tensors alive for two steps, and so do we.
        self.batch_record_buf[self.batch_record_ct] += slots


def promised(self: Any, batch: Any) -> int:
    """Slots that are spoken for: the rest of a prompt that comes in chunks, one for each that decodes."""
    chunked = self.chunked_req
    rest = len(chunked.full_untruncated_fill_ids) - chunked.extend_end if chunked else 0
    return rest + sum(req is not chunked for req in (*self.running_batch.reqs, *batch.reqs))


@contextmanager
def forward_stream(scheduler: Any) -> Iterator[None]:
    if not scheduler.enable_overlap:
        yield
        return
    with scheduler.forward_stream_ctx:
        # The slots of a view may come from tensors that the schedule's stream is still making.
        scheduler.forward_stream.wait_stream(scheduler.schedule_stream)
        yield


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
)
