"""Scores of a whole prompt, comparable over layers, from a scorer that sees one layer at a time."""

from collections.abc import Iterable

import torch

from laprox_sglang.scorers.pooling import Pooling
from laprox_sglang.scorers.prompt import Prompt
from laprox_sglang.scorers.scorer import Scorer, is_pooled


def rank(layers: Iterable[Prompt], scorer: Scorer, pooling: Pooling, out: torch.Tensor) -> None:
    """Writes the scores by which cells are kept, as ``laprox_kernels.score`` does for LaProx.

    The candidates' scores are pooled, unless the scorer says otherwise, and divided by the layer's sum.
    Protected cells get +inf.

    Args:
        layers: every layer of one prompt. Taken one by one: no two are held at once.
        out: float32 ``[L, H, P]``, P = n - start; written whole.
    """
    for prompt in layers:
        rank_layer(prompt, scorer, pooling, out[prompt.layer])
        # The next one is made before the loop lets go of this one.
        del prompt


def rank_layer(prompt: Prompt, scorer: Scorer, pooling: Pooling, out: torch.Tensor) -> None:
    """``rank`` of one layer: ``out`` is ``[H, P]``."""
    scores = scorer(prompt)[:, prompt.candidates]
    if is_pooled(scorer):
        scores = pooling(scores)
    # A scorer may give +inf to what it wants kept before all else.
    total = scores.masked_fill(scores == float("inf"), 0).sum()
    out.fill_(float("inf"))
    # Where all is 0, all stays 0.
    ranked = (scores / total).masked_fill_((total == 0) & (scores == 0), 0)
    out[:, prompt.sinks : len(out[0]) - prompt.window] = ranked
