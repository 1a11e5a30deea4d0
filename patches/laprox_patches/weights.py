"""Weight update: scores are made of W_O, so a new W_O needs new Gram matrices."""

from typing import Any

from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.seam import Seam


def reload(result: None, self: Any, recv_req: Any) -> None:
    self.tp_worker.model_runner.attn_backend.laprox.load_weights()


SEAMS = (
    Seam(
        "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"
        ".flush_cache_after_weight_update",
        reload,
        HookType.AFTER,
        ("self", "recv_req"),
        "None",
    ),
)
