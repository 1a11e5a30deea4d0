"""The attention layers of a model that are scored: one list, which all that has to do with layers goes by."""

from dataclasses import dataclass

import torch

from laprox_sglang.ports import Layer


@dataclass(frozen=True, eq=False)
class ScoredLayer:
    """One layer, on this rank.

    Attributes:
        name: of ``module`` among the model's modules.
        module: SGLang's ``RadixAttention``; its ``layer_id`` is SGLang's number of the layer.
        projection: the module with W_O, behind the attention.
        index: of the layer in the KV pool, in this list, and along every axis L. Today it is SGLang's number:
            ``served_model.check_layers`` refuses models of which a rank holds only some layers.
        query_heads, kv_heads: of this rank.
        head_dim: of queries, keys and values.
        scaling: factor of the attention logits.
        window: positions that a sliding window lets a query see; None if it sees all.
        sink: name of the model's learned sinks; None if it has none.
    """

    name: str
    module: Layer
    projection: torch.nn.Module
    index: int
    query_heads: int
    kv_heads: int
    head_dim: int
    scaling: float
    window: int | None = None
    sink: str | None = None

    def key_scale(self, pool: torch.dtype) -> float:
        """Factor of the keys in a KV pool of that dtype: SGLang divides by it where it rounds to fp8."""
        return 1.0 if pool.itemsize > 1 else self.module.k_scale_float or 1.0

    def value_scale(self, pool: torch.dtype) -> float:
        """The same of values."""
        return 1.0 if pool.itemsize > 1 else self.module.v_scale_float or 1.0
