"""Scheduler: what is done before and behind each forward pass."""

from collections.abc import Callable

from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.seam import Seam
from laprox_sglang.attention.backend import LaproxAttention
from laprox_sglang.cache.tree import LaproxCache
from laprox_sglang.ports import Batch, Req, Runner, Scheduler
from laprox_sglang.runtime import Chunk, Runtime
from laprox_sglang.views.state import plan_of, state_of, view_of


def runtime_of(runner: Runner) -> Runtime:
    assert isinstance(runner.attn_backend, LaproxAttention)
    return runner.attn_backend.laprox


def runtime(scheduler: Scheduler) -> Runtime:
    return runtime_of(scheduler.tp_worker.model_runner)


def cache(scheduler: Scheduler) -> LaproxCache:
    assert isinstance(scheduler.tree_cache, LaproxCache)
    return scheduler.tree_cache


def run_batch(
    original: Callable[..., object],
    self: Scheduler,
    batch: Batch,
    *args: object,
    **kwargs: object,
) -> object:
    laprox, tree = runtime(self), cache(self)
    if batch.forward_mode.is_extend():
        laprox.begin_prefill([chunk_of(req, laprox) for req in batch.reqs], tree)
    elif batch.forward_mode.is_decode():
        laprox.decode.take_step(
            [view_of(req) for req in batch.reqs], [req.kv.kv_allocated_len for req in batch.reqs]
        )
    else:
        # With attention data parallelism a rank without requests of its own steps along.
        laprox.decode.forget()
    result = original(self, batch, *args, **kwargs)
    if batch.forward_mode.is_extend():
        # Before anything is launched behind the prefill: the first decode step, which overlap scheduling
        # launches before it looks at the prefill's result, already reads the views.
        written = laprox.finish_prefill(tree, promised(self, batch))
        if written:
            # The rows of req_to_token change after the forward pass, so the event that says "its reads are
            # done" comes too early for this step. Without it SGLang waits for the whole pass.
            self.model_worker.last_shared_read_runner.shared_read_done_event = None
    if tree.grew:
        # Stock clears this flag only when a request ends. Slots have just become free, so others may be let
        # in now.
        self.running_batch.batch_is_full = tree.grew = False
    return result


def chunk_of(req: Req, laprox: Runtime) -> Chunk:
    plan = plan_of(req, laprox.config)
    return Chunk(req, state_of(req), req.kv.req_pool_idx, req.prefix_len, req.extend_end, plan)


def promised(self: Scheduler, batch: Batch) -> int:
    """Slots that are spoken for: the rest of a prompt that comes in chunks, one for each that decodes."""
    chunked = self.chunked_req
    rest = len(chunked.full_untruncated_fill_ids) - chunked.extend_end if chunked else 0
    return rest + sum(req is not chunked for req in (*self.running_batch.reqs, *batch.reqs))


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
