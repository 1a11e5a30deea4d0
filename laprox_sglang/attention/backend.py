"""Attention backend of a server that prunes: stock, with a look at the queries and ragged decode."""

from typing import Any

from sglang.srt.layers.attention.base_attn_backend import AttentionBackend, SharedReadEnds
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.model_executor.runner_utils.capture_mode import get_capture_lora_variant

import laprox_kernels as kernels
from laprox_sglang.runtime import Runtime

# SGLang can capture every decode graph twice, once with adapters. LaProx refuses adapters and takes
# the two families for its own: batches with a compressed row, and batches without one.
COMPRESSED, STOCK = "lora", "nolora"


class LaproxAttention(AttentionBackend):
    """Mixin in front of a stock backend. A batch without a compressed row is served by stock alone."""

    laprox: Runtime

    def shared_read_ends(self, fm: Any) -> SharedReadEnds:
        # Packing writes rows and slots behind the forward: the schedule stream waits for all of it,
        # whatever the stock backend declares of its own reads.
        return SharedReadEnds.UNKNOWN if self.laprox.packs else super().shared_read_ends(fm)

    def _snapshot_prefill_shared_reads(self, forward_batch: Any, *, num_qo_tokens: int) -> SharedReadEnds:
        if self.laprox.packs:
            return SharedReadEnds.UNKNOWN
        return super()._snapshot_prefill_shared_reads(forward_batch, num_qo_tokens=num_qo_tokens)

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        super().init_cuda_graph_state(max_bs, max_num_tokens)
        self.laprox.decode.allocate(max_bs)

    def init_forward_metadata(self, forward_batch: Any) -> None:
        decode = self.laprox.decode
        if decode.compressed:
            decode.prepare(forward_batch.req_pool_indices, forward_batch.seq_lens)
        else:
            super().init_forward_metadata(forward_batch)

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        decode = self.laprox.decode
        if in_capture:
            decode.begin_capture(get_capture_lora_variant() == COMPRESSED)
        if decode.compressed:
            decode.prepare_graph(forward_batch.req_pool_indices, forward_batch.seq_lens)
        else:
            super().init_forward_metadata_out_graph(forward_batch, in_capture)

    def init_forward_metadata_in_graph(self, forward_batch: Any) -> None:
        if self.laprox.decode.compressed:
            self.laprox.decode.make_plan()
        else:
            super().init_forward_metadata_in_graph(forward_batch)

    def forward_extend(
        self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, save_kv_cache: bool = True, **kw: Any
    ) -> Any:
        check_plain(kw)
        output = super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache, **kw)
        self.laprox.observe(layer.layer_id, q)
        return output

    def forward_decode(
        self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, save_kv_cache: bool = True, **kw: Any
    ) -> Any:
        decode, pool = self.laprox.decode, self.laprox.pool
        if decode.rows is None:
            return super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache, **kw)
        check_plain(kw)
        if save_kv_cache and k is not None:
            pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, None), k, v)
        queries = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        output = kernels.decode(
            queries, pool.keys, pool.values, layer.layer_id, decode.rows, layer.scaling, decode.plan
        )
        return output.reshape(q.shape[0], -1)


def check_plain(keywords: dict[str, Any]) -> None:
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
