"""SnapKV: what the end of the prompt attends to (arXiv 2404.14469)."""

import torch

from laprox_sglang.scorers.prompt import Prompt


def snapkv(prompt: Prompt) -> torch.Tensor:
    """Mean attention of the window's queries, mean over a KV head's query heads.

    Returns:
        float32 ``[H, n]``. The paper pools over 7 positions and keeps the same number in every head;
        Ada-KV (arXiv 2407.11550) is the same score with the allocator ``layer``.
    """
    return prompt.group(prompt.attention.mean(dim=1))
