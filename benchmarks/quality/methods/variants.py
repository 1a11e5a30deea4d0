"""What a better rule could be: scores and corrections that the server does not have, simulated."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import torch

from laprox_sglang.options.server import Config
from laprox_sglang.scorers.laprox import laprox
from laprox_sglang.scorers.pooling import Pooling
from laprox_sglang.scorers.prompt import Prompt

# Queries that speak for a phase.
PHASE_WINDOW = 24


class Variant(NamedTuple):
    """A method as a server would have it, and more.

    Attributes:
        least: slots that a view has at least.
        moments: what was dropped is answered for by its moments (MomentKV, arXiv 2606.01563), at equal bytes.
    """

    config: Config = Config()
    least: int = 0
    moments: bool = False


@dataclass(frozen=True, eq=False)
class Phased(Prompt):
    """A prompt with the last queries of its earlier phases.

    Attributes:
        phases: where each ends, and its queries ``[W, Hq, D]``.
    """

    phases: tuple[tuple[int, torch.Tensor], ...] = ()


def phased(prompt: Prompt) -> torch.Tensor:
    """A window for each phase, as AgentKV has it (OpenReview s80e8otSxP): shares by each, added up."""
    assert isinstance(prompt, Phased)
    found = torch.zeros(prompt.heads, prompt.length, device=prompt.keys.device)
    for end, queries in (*prompt.phases, (prompt.length, prompt.queries)):
        view = replace(prompt, queries=queries, keys=prompt.keys[:end], values=prompt.values[:end])
        scores = laprox(view)[:, prompt.start + prompt.sinks : end - len(queries)]
        first = prompt.start + prompt.sinks
        found[:, first : first + scores.shape[1]] += scores / scores.sum().clamp_min(1e-30)
    return found


@dataclass(frozen=True)
class ByPeak:
    """LaProx, one half of a layer's KV heads pooled otherwise than the other.

    Attributes:
        peaked, diffuse: pooling of the heads whose attention is spread over fewer positions, and over more.
    """

    peaked: Pooling
    diffuse: Pooling = field(default_factory=lambda: Pooling("parabola", 17))
    pooled: ClassVar[bool] = False

    def __call__(self, prompt: Prompt) -> torch.Tensor:
        """float32 ``[H, n]``."""
        candidates = prompt.candidates
        mean = prompt.group(prompt.attention.mean(dim=1))[:, candidates]
        shares = mean / mean.sum(dim=1, keepdim=True).clamp_min(1e-30)
        entropy = -(shares * shares.clamp_min(1e-30).log()).sum(dim=1, keepdim=True)
        scores = laprox(prompt)
        inner = scores[:, candidates]
        peaked = entropy <= entropy.median()
        scores[:, candidates] = torch.where(peaked, self.peaked(inner), self.diffuse(inner))
        return scores


NARROW_PEAKS = ByPeak(Pooling("parabola", 9))
WIDE_PEAKS = ByPeak(Pooling("parabola", 25))
HERE = "benchmarks.quality.methods.variants"
RULES = {
    "as served": Variant(),
    "a window a phase": Variant(Config(scorer=f"{HERE}:phased")),
    **{f"at least {least} slots": Variant(least=least) for least in (64, 128)},
    "narrow where peaked": Variant(Config(scorer=f"{HERE}:NARROW_PEAKS")),
    "wide where peaked": Variant(Config(scorer=f"{HERE}:WIDE_PEAKS")),
    "moments": Variant(moments=True),
    "momentkv, moments": Variant(Config(scorer="momentkv"), moments=True),
}


def moments_cells(dim: int) -> int:
    """Cells of a KV head whose bytes its moments take: a matrix of D × D, the mean key and value."""
    return dim // 2 + 1


def foretold(
    keys: torch.Tensor, values: torch.Tensor, dropped: torch.Tensor, queries: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the dropped cells would have said, to first order around their mean key, from their moments.

    Args:
        keys, values: ``[H, n, D]``.
        dropped: bool ``[M, H, n]``; where there is none, nothing is said.
        queries: scaled, ``[M, H, G, T, D]``.

    Returns:
        A logit ``[M, H, G, T, 1]`` and a value ``[M, H, G, T, D]``.
    """
    weights, keys, values = dropped.float(), keys.float(), values.float()
    count = weights.sum(-1)
    shares = weights / count[..., None].clamp_min(1)
    key, value = (torch.einsum("mhn,hnd->mhd", shares, x) for x in (keys, values))
    products = torch.stack([(values * one[..., None]).mT @ keys for one in shares])
    covariance = products - value[..., None] * key[..., None, :]
    logit = torch.einsum("mhgtd,mhd->mhgt", queries, key) + count.log()[..., None, None]
    moved = torch.einsum("mhgtd,mhed->mhgte", queries, covariance)
    return logit[..., None], moved + value[:, :, None, None]
