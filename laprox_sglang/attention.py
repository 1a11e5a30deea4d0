"""Attention backend of a server that prunes: stock, with a look at the queries and ragged decode."""

from typing import Any

from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc

import laprox_kernels as kernels
from laprox_sglang.gram import UnsupportedModel
from laprox_sglang.runtime import Runtime


class LaproxAttention(AttentionBackend):
    """Mixin in front of a stock backend. A batch without a compressed row is served by stock alone."""

    laprox: Runtime

    def init_forward_metadata(self, forward_batch: Any) -> None:
        super().init_forward_metadata(forward_batch)
        self.laprox.prepare_decode(forward_batch.req_pool_indices, forward_batch.seq_lens)

    def forward_extend(
        self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, save_kv_cache: bool = True, **kw: Any
    ) -> Any:
        if k is None or kw.get("sinks") is not None:
            raise UnsupportedModel("a layer reads the KV of another one, or has attention sinks")
        output = super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache, **kw)
        self.laprox.observe(layer, q)
        return output

    def forward_decode(
        self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, save_kv_cache: bool = True, **kw: Any
    ) -> Any:
        rows = self.laprox.decode_rows
        if rows is None:
            return super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache, **kw)
        pool = self.laprox.pool
        if save_kv_cache and k is not None:
            pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, None), k, v)
        queries = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        output = kernels.decode(
            queries, pool.keys, pool.values, layer.layer_id, rows, layer.scaling, self.laprox.decode_plan
        )
        return output.reshape(q.shape[0], -1)


def with_laprox(backend: AttentionBackend, runtime: Runtime) -> AttentionBackend:
    """Puts ``LaproxAttention`` in front of a backend's class; flags and isinstance checks stay right."""
    stock = type(backend)
    backend.__class__ = type("Laprox" + stock.__name__, (LaproxAttention, stock), {"laprox": runtime})
    return backend
