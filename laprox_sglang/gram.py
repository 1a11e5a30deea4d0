"""W_O of every query head, reduced to what the norm of a projected value needs."""

from typing import Any

import torch
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention

OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "dense", "wo")
# Columns of W_O projected at a time where the weight is quantized: bounds the temporary.
BLOCK = 1024


class UnsupportedModel(ValueError):
    """A model whose attention is not what LaProx scores; the message is one line."""


def attention_layers(model: torch.nn.Module) -> list[tuple[RadixAttention, torch.nn.Module]]:
    """Attention layers with their output projections, by layer.

    Raises:
        UnsupportedModel: a layer that LaProx cannot score or address.
    """
    found = []
    for name, module in model.named_modules():
        if isinstance(module, RadixAttention):
            parent = model.get_submodule(name.rpartition(".")[0])
            check_attention(name, module)
            if hasattr(parent, "sinks"):
                raise UnsupportedModel(f"{name} has attention sinks")
            projection = next((getattr(parent, p) for p in OUTPUT_PROJECTIONS if hasattr(parent, p)), None)
            if projection is None:
                raise UnsupportedModel(
                    f"{name}: no output projection beside it ({', '.join(OUTPUT_PROJECTIONS)})"
                )
            found.append((module, projection))
    found.sort(key=lambda pair: pair[0].layer_id)
    if [layer.layer_id for layer, _ in found] != list(range(len(found))) or not found:
        raise UnsupportedModel(f"its {len(found)} attention layers are not numbered from 0 without gaps")
    shapes = {(x.tp_q_head_num, x.tp_k_head_num, x.qk_head_dim, x.scaling) for x, _ in found}
    if len(shapes) > 1:
        raise UnsupportedModel(f"its layers differ in heads, head size or scaling: {sorted(shapes)}")
    return found


def check_attention(name: str, layer: RadixAttention) -> None:
    faults = {
        "a sliding window": layer.sliding_window_size > -1,
        "logit capping": layer.logit_cap > 0,
        "cross attention": layer.is_cross_attention,
        "attention that is not causal": layer.attn_type != AttentionType.DECODER,
        "chunked local attention": layer.use_irope,
        "a temperature by length": layer.xai_temperature_len > 0,
        "values of another size than keys": layer.qk_head_dim != layer.v_head_dim,
    }
    for fault, present in faults.items():
        if present:
            raise UnsupportedModel(f"{name} has {fault}")


def gram_matrices(model: torch.nn.Module, out: torch.Tensor | None = None) -> torch.Tensor:
    """``G_h = W_Oʰ W_Oʰᵀ`` of every layer and query head: float32 ``[L, Hq, D, D]``.

    ``√(v G_h vᵀ) = ‖v W_Oʰ‖₂``, so V W_O is never formed.

    Args:
        out: where to write them; None makes room.
    """
    found = attention_layers(model)
    for index, (layer, projection) in enumerate(found):
        weights = output_weights(layer, projection)
        gram = torch.einsum("hdx,hex->hde", weights, weights)
        if out is None:
            out = gram.new_empty((len(found), *gram.shape))
        out[index] = gram
    assert out is not None
    return out


def output_weights(layer: RadixAttention, projection: torch.nn.Module) -> torch.Tensor:
    """W_O of each query head of a layer: float32 ``[Hq, D, hidden]``."""
    weight = projection_weight(projection, layer.tp_q_head_num * layer.v_head_dim)
    return weight.unflatten(1, (layer.tp_q_head_num, layer.v_head_dim)).permute(1, 2, 0)


def projection_weight(projection: Any, size: int) -> torch.Tensor:
    """W_O as float32 ``[hidden, size]``, read through its quantization where it has one."""
    weight = getattr(projection, "weight", None)
    if weight is not None and weight.is_floating_point() and weight.dim() == 2 and weight.element_size() > 1:
        return weight.detach().float()
    parameter = next(projection.parameters())
    dtype = getattr(projection, "params_dtype", torch.get_default_dtype())
    eye = torch.eye(size, dtype=dtype, device=parameter.device)
    with torch.no_grad():
        rows = [projection.quant_method.apply(projection, block).float() for block in eye.split(BLOCK)]
    return torch.cat(rows).T.contiguous()
