"""Attention backend of a server that prunes: stock, with a look at the queries and ragged decode."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.model_executor.runner_utils.capture_mode import get_capture_attention_variant

import laprox_kernels as kernels
from laprox_sglang.attention.decode_batch import DecodeBatch
from laprox_sglang.ports import ForwardBatch, Layer
from laprox_sglang.runtime import Runtime

if TYPE_CHECKING:
    from laprox_sglang.ports import AttentionBackend
else:
    from sglang.srt.layers.attention.base_attn_backend import AttentionBackend

# A decode graph is captured for batches with a compressed row, and for batches without one.
COMPRESSED, WHOLE = "compressed", "whole"


@dataclass(frozen=True)
class GraphFamilies:
    """SGLang's ``AttentionGraphVariants``: which graphs there are of a batch size, and which one serves."""

    decode: DecodeBatch
    capture_labels: ClassVar[tuple[str, ...]] = (COMPRESSED, WHOLE)

    def select(self, forward_batch: ForwardBatch) -> str:
        return COMPRESSED if self.decode.compressed else WHOLE


class LaproxAttention(AttentionBackend):
    """Mixin in front of a stock backend. A batch without a compressed row is served by stock alone."""

    laprox: Runtime

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        super().init_cuda_graph_state(max_bs, max_num_tokens)
        self.laprox.decode.allocate(max_bs)

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        decode = self.laprox.decode
        if decode.compressed:
            decode.prepare(forward_batch.req_pool_indices, forward_batch.seq_lens)
        else:
            super().init_forward_metadata(forward_batch)

    def init_forward_metadata_out_graph(self, forward_batch: ForwardBatch, in_capture: bool = False) -> None:
        decode = self.laprox.decode
        if in_capture:
            decode.begin_capture(get_capture_attention_variant() == COMPRESSED)
        if decode.compressed:
            decode.prepare_graph(forward_batch.req_pool_indices, forward_batch.seq_lens)
        else:
            super().init_forward_metadata_out_graph(forward_batch, in_capture)

    def init_forward_metadata_in_graph(self, forward_batch: ForwardBatch) -> None:
        if self.laprox.decode.compressed:
            self.laprox.decode.make_plan()
        else:
            super().init_forward_metadata_in_graph(forward_batch)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: Layer,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kw: torch.Tensor | None,
    ) -> torch.Tensor:
        check_plain(kw)
        output = super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache, **kw)
        self.laprox.observe(layer.layer_id, q)
        return output

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: Layer,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kw: torch.Tensor | None,
    ) -> torch.Tensor:
        decode, pool = self.laprox.decode, self.laprox.pool
        if decode.rows is None:
            return super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache, **kw)
        check_plain(kw)
        if save_kv_cache and k is not None:
            place = KVWriteLoc(forward_batch.out_cache_loc, None)
            pool.set_kv_buffer(layer, place, k, v, layer.k_scale, layer.v_scale)
        scored = self.laprox.layers[layer.layer_id]
        queries = q.reshape(-1, scored.query_heads, scored.head_dim)
        scale = scored.scaling * scored.key_scale(pool.dtype)
        output = kernels.decode(
            queries, pool.keys, pool.values, scored.index, decode.rows, scale, decode.plan,
            scored.value_scale(pool.dtype),
        )  # fmt: skip
        return output.reshape(q.shape[0], -1)


def check_plain(keywords: dict[str, torch.Tensor | None]) -> None:
    """
    Raises:
        NotImplementedError: attention that is told more than Q, K and V, as a model's sinks; neither scores
            nor the decode over views would know of it.
    """
    if unknown := [name for name, value in keywords.items() if value is not None]:
        raise NotImplementedError(
            f"laprox: this model's attention takes {', '.join(sorted(unknown))}, which views are not read "
            "with: serve it without --enable-laprox"
        )


def with_laprox(backend: AttentionBackend, runtime: Runtime) -> AttentionBackend:
    """Puts ``LaproxAttention`` in front of a backend's class; flags and isinstance checks stay right."""
    stock = type(backend)
    backend.__class__ = type("Laprox" + stock.__name__, (LaproxAttention, stock), {"laprox": runtime})
    return backend
