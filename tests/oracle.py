"""Independent oracle: Hugging Face's Llama with the kept cells applied as a mask per layer and KV head."""

from typing import Any

import torch
from transformers import LlamaForCausalLM

from laprox_sglang.needle import MODEL_PATH


class Oracle:
    def __init__(self) -> None:
        self._model = LlamaForCausalLM.from_pretrained(
            MODEL_PATH, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    def logprobs(self, prompt: list[int], output: list[int], start: int, kept: list[list[list[int]]]) -> Any:
        """Log-probabilities ``[len(output), vocabulary]`` of each output token's step.

        The prompt attends to itself whole. Every later token attends to positions before ``start``,
        to the prompt's positions that ``kept[layer][head]`` names, and to the tokens after it.
        """
        ids = prompt + output
        n, total = len(prompt), len(ids)
        config = self._model.config
        group = config.num_attention_heads // config.num_key_value_heads
        causal = torch.ones(total, total, dtype=torch.bool).tril()
        hooks = []
        for layer, module in enumerate(self._model.model.layers):
            visible = causal.repeat(config.num_attention_heads, 1, 1)
            for head, positions in enumerate(kept[layer]):
                dropped = torch.ones(n, dtype=torch.bool)
                dropped[:start] = False
                dropped[torch.tensor(positions)] = False
                visible[head * group : (head + 1) * group, n:, :n] &= ~dropped
            mask = torch.zeros(visible.shape).masked_fill_(~visible, torch.finfo(torch.float32).min)[None]
            hooks.append(module.self_attn.register_forward_pre_hook(replace_mask(mask), with_kwargs=True))
        try:
            with torch.inference_mode():
                logits = self._model(torch.tensor([ids])).logits[0, n - 1 : -1]
        finally:
            for hook in hooks:
                hook.remove()
        return logits.log_softmax(-1)


def replace_mask(mask: torch.Tensor) -> Any:
    def hook(module: Any, args: Any, kwargs: Any) -> Any:
        return args, kwargs | {"attention_mask": mask}

    return hook
