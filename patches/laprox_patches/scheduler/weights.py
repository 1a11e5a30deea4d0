"""Weights: scores are made of W_O, so after every change of the weights the Gram matrices are made anew."""

from sglang.srt.constants import GPU_MEMORY_TYPE_WEIGHTS
from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.scheduler.step import runtime_of
from laprox_patches.seam import Seam
from laprox_sglang.ports import Runner, WeightUpdater


def reload(result: object, self: WeightUpdater, recv_req: object) -> None:
    # Between the begin and the end of a session weights are half loaded, and quantized ones are unpacked.
    # Memory that was released cannot be read at all. Both end in another call that comes here.
    if self._session is None and GPU_MEMORY_TYPE_WEIGHTS not in self.offload_tags:
        load_weights(self.tp_worker.model_runner)
    # Returns nothing: SGLang's own result stands.


def loaded(result: None, self: Runner) -> None:
    # With --startup-weight-load-mode overlap the real weights come after the attention backend.
    if not self.is_draft_worker:
        load_weights(self)


def load_weights(runner: Runner) -> None:
    runtime_of(runner).pruner.load_weights()


UPDATER = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager."
# Tensors and broadcasts are only taken within a session, so its end is enough. A failed update may have
# written as well. ``check_weights`` can fill the weights with noise.
CHANGES = (
    "update_weights_from_disk",
    "update_weights_from_ipc",
    "end_weight_update",
    "resume_memory_occupation",
    "check_weights",
)
SEAMS = (
    *(Seam(UPDATER + name, reload, HookType.AFTER, ("self", "recv_req")) for name in CHANGES),
    Seam(
        "sglang.srt.model_executor.model_runner.ModelRunner.finalize_startup_weight_load",
        loaded,
        HookType.AFTER,
        ("self",),
        "None",
    ),
)
