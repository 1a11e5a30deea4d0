"""CriticalKV: attention first, then what the values come to behind W_O (arXiv 2502.03805)."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from laprox_sglang.scorers.pooling import Pooling
from laprox_sglang.scorers.prompt import Prompt
from laprox_sglang.scorers.snapkv import snapkv

# Positions projected at a time: bounds the temporary.
BLOCK = 2048


@dataclass(frozen=True)
class CriticalKV:
    """A part of a head's budget by SnapKV, the rest by ``(s + epsilon) · mean_h ‖v_i W_Oʰ‖₁``.

    As kvpress has it, the first part counts the window, so that a small budget may have no other cell.

    Attributes:
        ratio: part of the budget that goes by SnapKV alone.
        epsilon: added to the scores s of SnapKV, that values count where attention is nothing.
        pooling: of SnapKV's scores; what comes after them is not pooled.
    """

    ratio: float = 0.5
    epsilon: float = 1e-4
    pooling: Pooling = field(default_factory=Pooling)
    pooled: ClassVar[bool] = False

    def __call__(self, prompt: Prompt) -> torch.Tensor:
        """float32 ``[H, n]``; +inf for the first part."""
        candidates = prompt.candidates
        scores = torch.zeros((prompt.heads, prompt.length), device=prompt.keys.device)
        attention = self.pooling(snapkv(prompt)[:, candidates])
        scores[:, candidates] = (attention + self.epsilon) * projected_norms(prompt)[:, candidates]
        first = max(0, int(self.ratio * prompt.keep) - prompt.protected)
        best = attention.sort(dim=-1, descending=True, stable=True).indices[:, :first]
        scores[:, candidates].scatter_(1, best, float("inf"))
        return scores


def projected_norms(prompt: Prompt) -> torch.Tensor:
    """``‖v W_O‖₁``, mean over a KV head's query heads: ``[H, n]``."""
    output = prompt.output.unflatten(0, (prompt.heads, -1))
    norms = []
    for weights, values in zip(output, prompt.values.unbind(1), strict=True):
        blocks = [
            torch.stack([(block @ of_head).abs().sum(dim=-1) for of_head in weights]).mean(dim=0)
            for block in values.split(BLOCK)
        ]
        norms.append(torch.cat(blocks))
    return torch.stack(norms)
