"""What a scorer is."""

from collections.abc import Callable
from dataclasses import replace

import torch

from laprox_sglang.scorers.prompt import Prompt

# Scores ``[H, n]`` of the positions of one layer, before pooling. Cells with higher scores are kept first. No
# score is negative, since each layer is divided by its sum to make layers comparable. A scorer that is not
# pooled may give +inf to cells that must be kept, to no more of a head than the budget grants it.
Scorer = Callable[[Prompt], torch.Tensor]


class BadScorer(ValueError):
    """What was named does not score a prompt; the message is one line that says why."""


def is_pooled(scorer: Scorer) -> bool:
    """Whether neighbouring positions are pooled; a scorer with an attribute ``pooled`` says so itself."""
    return bool(getattr(scorer, "pooled", True))


def try_out(name: str, scorer: Scorer, prompt: Prompt) -> None:
    """Scores one layer, and waits for what comes of it.

    Raises:
        BadScorer: it fails, or its result is not what a ``Scorer`` returns.
    """
    try:
        scores = scorer(prompt)
    except Exception as error:
        # Whatever the code of others does.
        raise BadScorer(f"scorer {name!r} failed: {type(error).__name__}: {error}") from error
    wanted = [prompt.heads, prompt.length]
    got = list(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
    if got != wanted:
        raise BadScorer(f"scorer {name!r} returns {got}, not [H, n] = {wanted}")
    if scores.dtype != torch.float32:
        raise BadScorer(f"scorer {name!r} returns {scores.dtype}, not torch.float32: end it with .float()")
    if not bool((scores >= 0).all()):
        raise BadScorer(f"scorer {name!r} returns negative scores or NaN")


def check_nested(name: str, scorer: Scorer, prompt: Prompt) -> None:
    """Looks whether what a small budget keeps is part of what a larger one keeps.

    Raises:
        BadScorer: the scores are others for another budget.
    """
    if not torch.equal(scorer(prompt), scorer(replace(prompt, keep=prompt.length - 1))):
        raise BadScorer(
            f"scorer {name!r} gives other scores to a larger view, so that a smaller one is no part of it: "
            "leave --laprox-budget-max out"
        )
