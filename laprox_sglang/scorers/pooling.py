"""A token that matters drags its neighbours along: an answer is rarely one token long."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from laprox_kernels import POOLINGS, pool

KINDS = (*POOLINGS, "max", "chunk")


class Pooling(NamedTuple):
    """How scores are pooled over neighbouring positions.

    Attributes:
        kind: one of ``KINDS``. ``average`` and ``max`` slide over the positions (SnapKV's code has both),
            ``parabola`` weighs them the less the further away they are (ours); the positions of a
            ``chunk`` share their mean (after ChunkKV, arXiv 2502.00299, head by head).
        width: in positions; odd where it slides. 1 is no pooling.
    """

    kind: str = "average"
    width: int = 7

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """Pools ``[H, C]`` over its C positions: beyond them there is nothing, which counts as 0."""
        if self.width == 1:
            return scores
        if self.kind in POOLINGS:
            return pool(scores, *self)
        if self.kind == "max":
            return F.max_pool1d(scores, self.width, stride=1, padding=self.width // 2)
        means = F.avg_pool1d(scores, self.width, stride=self.width, ceil_mode=True)
        return means.repeat_interleave(self.width, dim=1)[:, : scores.shape[1]]
