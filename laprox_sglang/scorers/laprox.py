"""LaProx: what a token adds to the output of its layer (arXiv 2605.07234)."""

import torch

from laprox_sglang.scorers.prompt import Prompt


def value_norms(prompt: Prompt) -> torch.Tensor:
    """``‖v W_O‖₂`` of every query head and position: ``[Hq, n]``."""
    gram = prompt.gram.unflatten(0, (prompt.heads, -1))
    # Head by head: all heads' products at once would be the largest tensor of all.
    forms = [
        torch.einsum("gnd,nd->gn", values @ grams, values)
        for values, grams in zip(prompt.values.unbind(1), gram, strict=True)
    ]
    # Rounding can push a vanishing quadratic form below zero.
    return torch.cat(forms).clamp_min_(0).sqrt_()


def laprox(prompt: Prompt) -> torch.Tensor:
    """The paper's Algorithm 1: ``‖A[:, i]‖₂ · ‖v_i W_O‖₂`` of each query head, mean over a KV head's.

    Returns:
        float32 ``[H, n]``. The paper pools by an average over 7 positions; window 32.
    """
    return prompt.group(torch.linalg.vector_norm(prompt.attention, dim=1) * value_norms(prompt))


def laprox_max(prompt: Prompt) -> torch.Tensor:
    """The largest ``A[w, i] · ‖v_i W_O‖₂`` over the window's queries and a KV head's query heads.

    The worst case in place of the mean, as DefensiveKV aggregates (arXiv 2510.13334).

    Returns:
        float32 ``[H, n]``.
    """
    largest = prompt.attention.amax(dim=1) * value_norms(prompt)
    worst: torch.Tensor = largest.unflatten(0, (prompt.heads, -1)).amax(dim=1)
    return worst


def laprox_joint(prompt: Prompt) -> torch.Tensor:
    """``‖Σ_h A_h[:, i] v_i W_Oʰ‖_F`` over the query heads h of a KV head: their cross terms are exact.

    Returns:
        float32 ``[H, n]``.
    """
    scores = []
    attention = prompt.attention.unflatten(0, (prompt.heads, -1))
    output = prompt.output.unflatten(0, (prompt.heads, -1))
    for columns, weights, values in zip(attention, output, prompt.values.unbind(1), strict=True):
        squares = torch.zeros_like(columns[0, 0])
        for h in range(len(columns)):
            for g in range(len(columns)):
                inner = torch.einsum("wn,wn->n", columns[h], columns[g])
                cross = values @ (weights[h] @ weights[g].mT)
                squares += inner * torch.einsum("nd,nd->n", cross, values)
        scores.append(squares.clamp_min_(0).sqrt_())
    return torch.stack(scores)
