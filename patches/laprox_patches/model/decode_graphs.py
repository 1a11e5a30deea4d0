"""Decode graphs: every batch size is captured twice, for compressed batches and for whole ones.

SGLang has an axis of its own for graphs that differ in how they attend.
"""

from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.seam import Seam
from laprox_sglang.attention.backend import GraphFamilies, LaproxAttention
from laprox_sglang.ports import GraphRunner


def capture_both(self: GraphRunner, stream_idx: int | None = None) -> None:
    if isinstance(self.attn_backend, LaproxAttention):
        self.attention_graph_variants = GraphFamilies(self.attn_backend.laprox.decode)


SEAMS = (
    Seam(
        "sglang.srt.model_executor.runner.decode_cuda_graph_runner.DecodeCudaGraphRunner._capture_one_stream",
        capture_both,
        HookType.BEFORE,
        ("self", "stream_idx"),
        "None",
    ),
)
