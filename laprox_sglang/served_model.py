"""The layers of a model, found once before anything is served; and the models that are not served."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention

from laprox_sglang.layers import ScoredLayer
from laprox_sglang.ports import Layer

OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "dense", "wo")


class UnsupportedModel(ValueError):
    """A model whose attention is not what LaProx scores; the message is one line."""


def scored_layers(model: torch.nn.Module) -> list[ScoredLayer]:
    """The attention layers of a model, in their order in the KV pool.

    Raises:
        UnsupportedModel: a layer that LaProx cannot score or address.
    """
    layers = find_layers(model)
    check_layers(layers)
    return layers


def find_layers(model: torch.nn.Module) -> list[ScoredLayer]:
    """All of them, whether they are served or not.

    Raises:
        UnsupportedModel: they lie where none is found, or have no output projection beside them.
    """
    if hasattr(model, "attention_instances"):
        return transformers_layers(model, cast("Mapping[int, Layer]", model.attention_instances))
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, RadixAttention)]
    found.sort(key=lambda layer: layer[1].layer_id)
    return [
        scored_layer(index, name, module, model.get_submodule(name.rpartition(".")[0]))
        for index, (name, module) in enumerate(found)
    ]


def transformers_layers(model: torch.nn.Module, attention: Mapping[int, Layer]) -> list[ScoredLayer]:
    """The layers of a model that SGLang has no class of its own for, and runs on its Transformers backend.

    Args:
        attention: SGLang's layers, which are no modules of the model; Hugging Face's modules know their
            numbers.
    """
    parents: dict[int, tuple[str, torch.nn.Module]] = {}
    for name, module in model.named_modules():
        if (number := getattr(module, "layer_idx", None)) is None or projection_of(module) is None:
            continue
        if number in parents:
            raise UnsupportedModel(
                f"it runs on SGLang's Transformers backend, and both {parents[number][0]} and {name} are "
                f"layer {number}"
            )
        parents[number] = name, module
    if missing := sorted(set(attention) - set(parents)):
        raise UnsupportedModel(
            f"it runs on SGLang's Transformers backend, and LaProx finds no module with the output "
            f"projection of layer {missing[0]} ({', '.join(OUTPUT_PROJECTIONS)})"
        )
    layers = []
    for index, (number, module) in enumerate(sorted(attention.items())):
        name, parent = parents[number]
        layer = scored_layer(index, name, module, parent)
        # SGLang's layer learns it at its first forward pass.
        layers.append(replace(layer, scaling=getattr(parent, "scaling", None) or layer.scaling))
    return layers


def projection_of(attention: torch.nn.Module) -> torch.nn.Module | None:
    return next((getattr(attention, name) for name in OUTPUT_PROJECTIONS if hasattr(attention, name)), None)


def scored_layer(index: int, name: str, module: Layer, parent: torch.nn.Module) -> ScoredLayer:
    """
    Args:
        parent: the module that has the output projection of ``module`` and, as a rule, ``module``.
    """
    projection = projection_of(parent)
    if projection is None:
        raise UnsupportedModel(f"{name}: no output projection beside it ({', '.join(OUTPUT_PROJECTIONS)})")
    return ScoredLayer(
        name=name,
        module=module,
        # SGLang puts LoRA in front of it; scores are made of the weights that all adapters share.
        projection=getattr(projection, "base_layer", projection),
        index=index,
        query_heads=module.tp_q_head_num,
        kv_heads=module.tp_k_head_num,
        head_dim=module.qk_head_dim,
        scaling=module.scaling,
        window=module.sliding_window_size if module.sliding_window_size > -1 else None,
        sink=sink_weights(parent),
    )


def sink_weights(attention: torch.nn.Module) -> str | None:
    """Name of the learned sinks beside a layer's attention, under whatever name its model has them."""
    named = (
        *attention.named_parameters(recurse=False),
        *attention.named_buffers(recurse=False),
        *vars(attention).items(),
    )
    # Models without sinks may have the name and no value.
    return next((name for name, value in named if "sink" in name and isinstance(value, torch.Tensor)), None)


def check_layers(layers: Sequence[ScoredLayer]) -> None:
    """
    Raises:
        UnsupportedModel: these layers are not served; it says which, and why.
    """
    for layer in layers:
        if fault := fault_of(layer):
            raise UnsupportedModel(f"{layer.name} has {fault}")
    if not layers or any(layer.module.layer_id != layer.index for layer in layers):
        raise UnsupportedModel(f"its {len(layers)} attention layers are not numbered from 0 without gaps")
    shapes = {(x.query_heads, x.kv_heads, x.head_dim, x.scaling) for x in layers}
    if len(shapes) > 1:
        raise UnsupportedModel(f"its layers differ in heads, head size or scaling: {sorted(shapes)}")


def fault_of(layer: ScoredLayer) -> str | None:
    """What a layer has that LaProx does not score."""
    module = layer.module
    faults = {
        "a sliding window": layer.window is not None,
        "logit capping": module.logit_cap > 0,
        "cross attention": module.is_cross_attention,
        "attention that is not causal": module.attn_type != AttentionType.DECODER,
        "chunked local attention": module.use_irope,
        "a temperature by length": module.xai_temperature_len > 0,
        "values of another size than keys": module.qk_head_dim != module.v_head_dim,
        f"attention sinks ({layer.sink})": layer.sink is not None,
    }
    return next((fault for fault, present in faults.items() if present), None)
