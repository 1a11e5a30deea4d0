"""W_O of a layer, the projection behind its attention, as float32 and a few query heads at a time."""

from typing import Protocol, cast

import torch

from laprox_sglang.ports import Layer


class Quantized(Protocol):
    """A projection that is applied by the method it is quantized with."""

    quant_method: "QuantMethod"


class QuantMethod(Protocol):
    def apply(self, layer: object, x: torch.Tensor) -> torch.Tensor: ...


# Query heads whose W_O is read at a time where all of them are: bounds what that takes.
HEADS_AT_ONCE = 4


def output_weights(layer: Layer, projection: torch.nn.Module, heads: slice = slice(None)) -> torch.Tensor:
    """W_O of query heads of a layer: float32 ``[Hq, D, hidden]``.

    Args:
        layer: SGLang's ``RadixAttention``, in front of ``projection``.
    """
    dim = layer.v_head_dim
    chosen = range(layer.tp_q_head_num)[heads]
    channels = slice(chosen.start * dim, chosen.stop * dim)
    weight = projection_weight(projection, layer.tp_q_head_num * dim, channels)
    return weight.unflatten(0, (len(chosen), dim))


def projection_weight(projection: torch.nn.Module, size: int, channels: slice) -> torch.Tensor:
    """Some of the ``size`` input channels of W_O: float32 ``[channels, hidden]``, read through its
    quantization where it has one."""
    weight = getattr(projection, "weight", None)
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
