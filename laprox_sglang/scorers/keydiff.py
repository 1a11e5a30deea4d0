"""KeyDiff: keys unlike the others (arXiv 2504.15364)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from laprox_sglang.scorers.prompt import Prompt


@dataclass(frozen=True)
class KeyDiff:
    """``1 - cos(k_i, mean of the normalised keys)``: looks at no query.

    The paper prunes after every 128 tokens; here all keys of the prompt are looked at once.
    """

    pooled: ClassVar[bool] = False

    def __call__(self, prompt: Prompt) -> torch.Tensor:
        """float32 ``[H, n]``."""
        anchor = F.normalize(prompt.keys, dim=-1).mean(dim=0)
        # Rounding can push the cosine of equal directions above one.
        return (1 - F.cosine_similarity(prompt.keys, anchor, dim=-1)).clamp_min_(0).T
