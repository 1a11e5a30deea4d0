"""Prompts as a scorer sees them, out of Hugging Face's Llama: what a server computes, computed by others."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from transformers import DynamicCache, LlamaForCausalLM
from transformers.models.llama.modeling_llama import rotate_half

from laprox_sglang.scorers.prompt import Prompt
from laprox_tools.needle import MODEL_PATH


@cache
def load_model() -> LlamaForCausalLM:
    """The 7M model in float32."""
    return LlamaForCausalLM.from_pretrained(
        MODEL_PATH, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()


@contextmanager
def hooked(model: LlamaForCausalLM, hook: Callable[..., None]) -> Iterator[None]:
    """Calls ``hook(module, arguments, keywords)`` before every layer's attention."""
    handles = [
        layer.self_attn.register_forward_pre_hook(hook, with_kwargs=True) for layer in model.model.layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Captured:
    """A prompt's forward pass: what goes into every layer's attention, and the KV that is left.

    Attributes:
        inputs: by layer, the keyword arguments of its attention.
        keys, values: by layer, ``[1, H, n, D]``.
    """

    def __init__(self, model: LlamaForCausalLM, ids: list[int]) -> None:
        self.model = model
        self.inputs: list[dict[str, Any]] = []
        cache = DynamicCache()
        with hooked(model, lambda module, args, kw: self.inputs.append(kw)):
            model(torch.tensor([ids]), past_key_values=cache)
        self.keys = [layer.keys for layer in cache.layers]
        self.values = [layer.values for layer in cache.layers]

    def prompts(self, window: int, start: int, sinks: int, keep: int) -> Iterator[Prompt]:
        """Every layer, as ``rank`` takes them."""
        config = self.model.config
        for index, layer in enumerate(self.model.model.layers):
            module, inputs = layer.self_attn, self.inputs[index]
            cos, sin = (table[0, -window:, None] for table in inputs["position_embeddings"])
            queries = module.q_proj(inputs["hidden_states"][0, -window:])
            queries = queries.unflatten(1, (config.num_attention_heads, -1))
            queries = queries * cos + rotate_half(queries) * sin
            weights = module.o_proj.weight.unflatten(1, (config.num_attention_heads, -1)).permute(1, 2, 0)
            yield Prompt(
                index,
                queries,
                self.keys[index][0].transpose(0, 1),
                self.values[index][0].transpose(0, 1),
                weights @ weights.mT,
                module.scaling,
                start,
                sinks,
                keep,
                weights.clone,
            )
