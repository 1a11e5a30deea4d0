"""W_O, the projection behind a layer's attention: read in float32, and reduced to what a norm needs."""

from collections.abc import Sequence
from typing import Protocol, cast

import torch

from laprox_sglang.layers import ScoredLayer


class Quantized(Protocol):
    """A projection that is applied by the method it is quantized with."""

    quant_method: "QuantMethod"


class QuantMethod(Protocol):
    def apply(self, layer: object, x: torch.Tensor) -> torch.Tensor: ...


# Query heads whose W_O is read at a time where all of them are: bounds what that takes.
HEADS_AT_ONCE = 4


def gram_matrices(layers: Sequence[ScoredLayer], out: torch.Tensor | None = None) -> torch.Tensor:
    """``G_h = W_Oʰ W_Oʰᵀ`` of every layer and query head: float32 ``[L, Hq, D, D]``.

    ``√(v G_h vᵀ) = ‖v W_Oʰ‖₂``, so V W_O is never formed. W_O itself is read a few heads at a time, as after
    an update no more memory is left than was set aside. A rank's part of W_O has all of the hidden size, so
    its heads' matrices need nothing of other ranks.

    Args:
        layers: all of one shape.
        out: where to write them; None makes room.
    """
    heads, dim = layers[0].query_heads, layers[0].head_dim
    if out is None:
        device = next(layers[0].projection.parameters()).device
        out = torch.empty((len(layers), heads, dim, dim), dtype=torch.float32, device=device)
    for layer in layers:
        for first in range(0, heads, HEADS_AT_ONCE):
            some = slice(first, first + HEADS_AT_ONCE)
            weights = output_weights(layer, some)
            torch.bmm(weights, weights.transpose(1, 2), out=out[layer.index, some])
    return out


def output_weights(layer: ScoredLayer, heads: slice = slice(None)) -> torch.Tensor:
    """W_O of query heads of a layer: float32 ``[Hq, D, hidden]``."""
    dim = layer.head_dim
    chosen = range(layer.query_heads)[heads]
    channels = slice(chosen.start * dim, chosen.stop * dim)
    weight = projection_weight(layer.projection, layer.query_heads * dim, channels)
    by_head: torch.Tensor = weight.unflatten(0, (len(chosen), dim))
    return by_head


def projection_weight(projection: torch.nn.Module, size: int, channels: slice) -> torch.Tensor:
    """Some of the ``size`` input channels of W_O: float32 ``[channels, hidden]``, read through its
    quantization where it has one."""
    weight: torch.Tensor | None = getattr(projection, "weight", None)
    if weight is not None and weight.is_floating_point() and weight.dim() == 2 and weight.element_size() > 1:
        return weight.detach()[:, channels].float().T
    parameter = next(projection.parameters())
    dtype = getattr(projection, "params_dtype", torch.get_default_dtype())
    rows = torch.zeros((channels.stop - channels.start, size), dtype=dtype, device=parameter.device)
    rows.diagonal(channels.start).fill_(1)
    with torch.no_grad():
        output = cast(Quantized, projection).quant_method.apply(projection, rows)
    return output.float()


def reading_bytes(q_heads: int, dim: int, hidden: int) -> int:
    """Bound of what ``output_weights`` of ``HEADS_AT_ONCE`` makes, its result among it."""
    channels = min(q_heads, HEADS_AT_ONCE) * dim
    # What a quantized projection is applied to, its output in the model's dtype, and that in float32.
    return 4 * channels * (q_heads * dim + 2 * hidden)
