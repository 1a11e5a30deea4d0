"""What a scorer is."""

from collections.abc import Callable

import torch

from laprox_sglang.scorers.prompt import Prompt

# Scores ``[H, n]`` of the positions of one layer, before pooling: the higher, the sooner kept. They are
# not negative, since layers are made comparable by dividing by their sum. +inf, from a scorer that is not
# pooled and of no more cells than the budget grants to a head, is kept before all else.
Scorer = Callable[[Prompt], torch.Tensor]


def is_pooled(scorer: Scorer) -> bool:
    """Whether neighbouring positions are pooled; a scorer with an attribute ``pooled`` says so itself."""
    return bool(getattr(scorer, "pooled", True))
