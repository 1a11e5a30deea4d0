"""How much each cell of a prompt matters, by name: a scorer each file. What else decides which are kept."""

from importlib import import_module
from typing import NamedTuple

from laprox_kernels import POOLINGS
from laprox_sglang.scorers.allocators import Allocation
from laprox_sglang.scorers.criticalkv import CriticalKV
from laprox_sglang.scorers.keydiff import KeyDiff
from laprox_sglang.scorers.laprox import laprox, laprox_joint, laprox_max
from laprox_sglang.scorers.momentkv import momentkv
from laprox_sglang.scorers.obcache import obcache_k
from laprox_sglang.scorers.pooling import Pooling
from laprox_sglang.scorers.random import Random
from laprox_sglang.scorers.scorer import BadScorer, Scorer, check_nested, is_pooled, try_out
from laprox_sglang.scorers.snapkv import snapkv
from laprox_sglang.scorers.streamingllm import StreamingLLM

__all__ = [
    "SCORERS",
    "SEE_BUDGET",
    "BadScorer",
    "Method",
    "Scorer",
    "check_nested",
    "find",
    "is_pooled",
    "try_out",
]

SCORERS: dict[str, Scorer] = {
    "laprox": laprox,
    "laprox-max": laprox_max,
    "laprox-joint": laprox_joint,
    "snapkv": snapkv,
    "keydiff": KeyDiff(),
    "criticalkv": CriticalKV(),
    "momentkv": momentkv,
    "obcache-k": obcache_k,
    "streamingllm": StreamingLLM(),
    "random": Random(),
}
# Of these scores depend on ``Prompt.keep``: what a small budget keeps is no part of what a larger one keeps.
SEE_BUDGET = ("criticalkv", "momentkv")


class Method(NamedTuple):
    """All that decides which cells are kept: a scorer, how its scores are pooled, and what the cells compete
    over."""

    scorer: Scorer
    pooling: Pooling
    allocation: Allocation

    @property
    def fused(self) -> bool:
        """Whether ``laprox_kernels.score`` computes these scores; all else is torch, on any device."""
        return self.scorer is laprox and self.pooling.kind in POOLINGS


def find(name: str) -> Scorer:
    """A scorer by its name in ``SCORERS``, or anybody's by ``package.module:name``.

    Raises:
        BadScorer: there is none.
    """
    if ":" not in name:
        if name not in SCORERS:
            raise BadScorer(
                f"scorer {name!r} is not known; give one of {', '.join(SCORERS)}, or package.module:name"
            )
        return SCORERS[name]
    module, _, attribute = name.partition(":")
    try:
        scorer: Scorer = getattr(import_module(module), attribute)
    except Exception as error:
        # Whatever the code of others does when it is imported.
        raise BadScorer(f"scorer {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(scorer):
        raise BadScorer(f"scorer {name!r} is no function of a Prompt, but {type(scorer).__name__}")
    return scorer
