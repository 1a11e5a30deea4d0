"""W_O of every query head, reduced to what the norm of a projected value needs."""

import torch
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention

from laprox_sglang.projection import HEADS_AT_ONCE, output_weights

OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "dense", "wo")


class UnsupportedModel(ValueError):
    """A model whose attention is not what LaProx scores; the message is one line."""


def attention_layers(model: torch.nn.Module) -> list[tuple[RadixAttention, torch.nn.Module]]:
    """Attention layers with their output projections, by layer.

    Raises:
        UnsupportedModel: a layer that LaProx cannot score or address.
    """
    # It keeps its attention layers out of the tree of modules.
    if hasattr(model, "attention_instances"):
        raise UnsupportedModel(
            "it runs on SGLang's Transformers backend, whose attention layers LaProx does not address; "
            "models that SGLang has a class of its own for can be served"
        )
    found = []
    for name, module in model.named_modules():
        if isinstance(module, RadixAttention):
            parent = model.get_submodule(name.rpartition(".")[0])
            check_attention(name, module)
            if sinks := sink_weights(parent):
                raise UnsupportedModel(f"{name} has attention sinks ({sinks})")
            projection = next((getattr(parent, p) for p in OUTPUT_PROJECTIONS if hasattr(parent, p)), None)
            if projection is None:
                raise UnsupportedModel(
                    f"{name}: no output projection beside it ({', '.join(OUTPUT_PROJECTIONS)})"
                )
            # SGLang puts LoRA in front of it; scores are made of the weights that all adapters share.
            found.append((module, getattr(projection, "base_layer", projection)))
    found.sort(key=lambda pair: pair[0].layer_id)
    if [layer.layer_id for layer, _ in found] != list(range(len(found))) or not found:
        raise UnsupportedModel(f"its {len(found)} attention layers are not numbered from 0 without gaps")
    shapes = {(x.tp_q_head_num, x.tp_k_head_num, x.qk_head_dim, x.scaling) for x, _ in found}
    if len(shapes) > 1:
        raise UnsupportedModel(f"its layers differ in heads, head size or scaling: {sorted(shapes)}")
    return found


def sink_weights(attention: torch.nn.Module) -> str | None:
    """Name of the learned sinks beside a layer's attention, under whatever name its model has them."""
    named = (
        *attention.named_parameters(recurse=False),
        *attention.named_buffers(recurse=False),
        *vars(attention).items(),
    )
    # Models without sinks may have the name and no value.
    return next((name for name, value in named if "sink" in name and isinstance(value, torch.Tensor)), None)


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

    ``√(v G_h vᵀ) = ‖v W_Oʰ‖₂``, so V W_O is never formed. W_O itself is read a few heads at a time, as after
    an update no more memory is left than was set aside.

    Args:
        out: where to write them; None makes room.
    """
    found = attention_layers(model)
    layer = found[0][0]
    heads, dim = layer.tp_q_head_num, layer.v_head_dim
    if out is None:
        device = next(found[0][1].parameters()).device
        out = torch.empty((len(found), heads, dim, dim), dtype=torch.float32, device=device)
    for index, (layer, projection) in enumerate(found):
        for first in range(0, heads, HEADS_AT_ONCE):
            some = slice(first, first + HEADS_AT_ONCE)
            weights = output_weights(layer, projection, some)
            torch.bmm(weights, weights.transpose(1, 2), out=out[index, some])
    return out
