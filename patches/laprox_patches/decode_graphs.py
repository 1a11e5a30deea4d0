"""Decode graphs: every batch size is captured twice, for compressed batches and for whole ones.

SGLang has this second axis for batches with and without adapters, which LaProx refuses.
"""

from typing import Any

from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.seam import Seam
from laprox_sglang.attention.backend import COMPRESSED, STOCK


def capture_both(self: Any, stream_idx: int | None = None) -> None:
    self.record_nolora_graph = True


def family(result: str | None, self: Any, forward_batch: Any) -> str:
    return COMPRESSED if self.attn_backend.laprox.decode.compressed else STOCK


TARGET = "sglang.srt.model_executor.runner.decode_cuda_graph_runner.DecodeCudaGraphRunner."
SEAMS = (
    Seam(TARGET + "_capture_one_stream", capture_both, HookType.BEFORE, ("self", "stream_idx"), "None"),
    Seam(TARGET + "_resolve_lora_variant", family, HookType.AFTER, ("self", "forward_batch")),
)
