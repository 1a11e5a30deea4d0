"""Scores of a whole prompt, from a scorer that sees one layer at a time; layers made comparable."""

from collections.abc import Iterable

import torch

from laprox_sglang.scorers.pooling import Pooling
from laprox_sglang.scorers.prompt import Prompt
from laprox_sglang.scorers.scorer import Scorer, is_pooled


def rank(layers: Iterable[Prompt], scorer: Scorer, pooling: Pooling, out: torch.Tensor) -> torch.Tensor:
    """Writes the scores by which cells are kept, as ``laprox_kernels.score`` does for LaProx.

    The candidates' scores are pooled, unless the scorer says otherwise. Protected cells get +inf.

    Args:
        layers: every layer of one prompt. Taken one by one: no two are held at once.
        out: float32 ``[L, H, P]``, P = n - start; written whole.

    Returns:
        Sum of the finite scores of each layer's candidates: float32 ``[L]``.
    """
    sums = out.new_empty(len(out))
    for prompt in layers:
        sums[prompt.layer] = rank_layer(prompt, scorer, pooling, out[prompt.layer])
        # The next one is made before the loop lets go of this one.
        del prompt
    return sums


def rank_layer(prompt: Prompt, scorer: Scorer, pooling: Pooling, out: torch.Tensor) -> torch.Tensor:
    """``rank`` of one layer: ``out`` is ``[H, P]``, and one sum is returned."""
    scores = scorer(prompt)[:, prompt.candidates]
    if is_pooled(scorer):
        scores = pooling(scores)
    out.fill_(float("inf"))
    out[:, prompt.sinks : len(out[0]) - prompt.window] = scores
    # A scorer may give +inf to what it wants kept before all else.
    return scores.masked_fill(scores == float("inf"), 0).sum()


def compare_layers(scores: torch.Tensor, sums: torch.Tensor, candidates: slice) -> None:
    """Makes every candidate's score its share of its layer's sum, in place, without waiting for the device.

    Args:
        scores: float32 ``[L, H, P]``.
        sums: float32 ``[L]``. A layer whose sum is 0 stays as it is; one whose sum is NaN becomes NaN.
        candidates: what is not protected of the P positions. The protected keep their +inf: divided by NaN,
            it would be NaN, which is kept last.
    """
    scores[..., candidates].div_(sums.masked_fill(sums == 0, 1).view(-1, 1, 1))
