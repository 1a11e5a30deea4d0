"""MomentKV's score: values that the moments of the dropped tokens do not foretell (arXiv 2606.01563)."""

import torch

from laprox_sglang.scorers.prompt import Prompt
from laprox_sglang.scorers.snapkv import snapkv


def momentkv(prompt: Prompt) -> torch.Tensor:
    """``α_i · ‖v_i − v̄ − C k_i / √D‖₂``, with α the mean attention of the window.

    The mean value v̄ and the covariance C of values and keys are those of the candidates beyond the budget
    by α. The paper updates them as it drops one token after another, and corrects the output of every
    decode step by them, which is most of its gain: neither is done here.

    Returns:
        float32 ``[H, n]``.
    """
    attention = snapkv(prompt)
    candidates = prompt.candidates
    count = attention[:, candidates].shape[1]
    ranked = attention[:, candidates].sort(dim=-1, descending=True, stable=True).indices
    dropped = ranked[:, min(max(0, prompt.keep - prompt.protected), count - 1) :] + candidates.start
    scores = []
    for of_head, index, keys, values in zip(
        attention, dropped, prompt.keys.unbind(1), prompt.values.unbind(1), strict=True
    ):
        key_mean, value_mean = keys[index].mean(dim=0), values[index].mean(dim=0)
        covariance = (values[index] - value_mean).T @ (keys[index] - key_mean) / len(index)
        foretold = keys @ covariance.T / keys.shape[-1] ** 0.5
        scores.append(of_head * torch.linalg.vector_norm(values - value_mean - foretold, dim=-1))
    return torch.stack(scores)
