"""All that decides which cells are kept."""

from typing import NamedTuple

from laprox_kernels import POOLINGS
from laprox_sglang.scorers.allocators import Allocation
from laprox_sglang.scorers.laprox import laprox
from laprox_sglang.scorers.pooling import Pooling
from laprox_sglang.scorers.scorer import Scorer


class Method(NamedTuple):
    """A scorer, how its scores are pooled, and what the cells compete over."""

    scorer: Scorer
    pooling: Pooling
    allocation: Allocation

    @property
    def fused(self) -> bool:
        """Whether ``laprox_kernels.score`` computes these scores; all else is torch, on any device."""
        return self.scorer is laprox and self.pooling.kind in POOLINGS
