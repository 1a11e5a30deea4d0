"""Weight update: scores are made of W_O, so a new W_O needs new Gram matrices."""

from typing import Any

from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.seam import Seam


def reload(result: Any, self: Any, recv_req: Any, success: bool, message: str) -> None:
    # Returns nothing: SGLang's own result stands.
    self.tp_worker.model_runner.attn_backend.laprox.pruner.load_weights()


SEAMS = (
    Seam(
        "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"
        ".flush_cache_after_weight_update",
        reload,
        HookType.AFTER,
        ("self", "recv_req", "success", "message"),
        "Tuple[bool, str]",
    ),
)
