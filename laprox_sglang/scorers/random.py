"""Random cells: what any method must beat."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from laprox_sglang.scorers.prompt import Prompt


@dataclass(frozen=True)
class Random:
    """Numbers from 0 to 1, the same whenever a prompt of this length comes again."""

    seed: int = 0
    pooled: ClassVar[bool] = False

    def __call__(self, prompt: Prompt) -> torch.Tensor:
        """float32 ``[H, n]``."""
        device = prompt.keys.device
        generator = torch.Generator(device).manual_seed(self.seed * 2**16 + prompt.layer)
        return torch.rand((prompt.heads, prompt.length), generator=generator, device=device)
