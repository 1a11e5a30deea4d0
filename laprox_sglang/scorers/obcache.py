"""OBCache's score of a key: what the output would lose without it, to second order (arXiv 2510.07651)."""

import torch

from laprox_sglang.scorers.prompt import Prompt


def obcache_k(prompt: Prompt) -> torch.Tensor:
    """``Σ_t (A_ti Z_ti)² ‖v_i − o_t‖²`` over the window's queries t, with logits Z and outputs o, mean over a
    KV head's query heads.

    Returns:
        float32 ``[H, n]``. The paper has a window of 16, max pooling over 7 and Ada-KV's allocator.
    """
    group = len(prompt.attention) // prompt.heads
    scores = []
    for q_head, attention in enumerate(prompt.attention):
        keys, values = prompt.keys[:, q_head // group], prompt.values[:, q_head // group]
        slopes = (prompt.queries[:, q_head] * prompt.scale @ keys.T).mul_(attention).square_()
        distances = torch.cdist(attention @ values, values).square_()
        scores.append(torch.einsum("wn,wn->n", slopes, distances))
    return prompt.group(torch.stack(scores))
