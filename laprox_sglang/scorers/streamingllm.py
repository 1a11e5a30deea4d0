"""StreamingLLM: the sinks and the most recent tokens (arXiv 2309.17453)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from laprox_sglang.scorers.prompt import Prompt


@dataclass(frozen=True)
class StreamingLLM:
    """The later, the higher, whatever the tokens. The paper keeps 4 sinks."""

    pooled: ClassVar[bool] = False

    def __call__(self, prompt: Prompt) -> torch.Tensor:
        """float32 ``[H, n]``."""
        position = torch.arange(1, prompt.length + 1, dtype=torch.float32, device=prompt.keys.device)
        return position.expand(prompt.heads, -1)
