"""What a scorer sees: one layer of one prompt."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True, eq=False)
class Prompt:
    """One layer of a prompt of n positions; the last W are its window. Tensors are float32, on any device.

    Query head q belongs to KV head q // (Hq / H). Nothing here waits for the device, nor may a scorer.

    Attributes:
        layer: index of the layer.
        queries: ``[W, Hq, D]``, of the window, after RoPE.
        keys, values: ``[n, H, D]``, keys after RoPE.
        gram: ``[Hq, D, D]``, ``W_O W_Oᵀ`` of each query head: ``√(v G vᵀ) = ‖v W_O‖₂``.
        scale: factor of the attention logits.
        start: first position that may be dropped; those before stay dense.
        sinks: positions from ``start`` on that are kept in any case, as the window is.
        keep: cells that the budget grants to every KV head on average, with those that are kept in any case.
        weights: makes ``output``.
        inside: candidates that are kept whatever their score, as instructions behind other messages are.
    """

    layer: int
    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    gram: torch.Tensor
    scale: float
    start: int
    sinks: int
    keep: int
    weights: Callable[[], torch.Tensor]
    inside: int = 0

    @property
    def length(self) -> int:
        """n"""
        return len(self.keys)

    @property
    def window(self) -> int:
        """W"""
        return len(self.queries)

    @property
    def heads(self) -> int:
        """H"""
        return self.keys.shape[1]

    @property
    def protected(self) -> int:
        """Cells of a KV head that are kept in any case."""
        return self.sinks + self.inside + self.window

    @property
    def candidates(self) -> slice:
        """Positions that are ranked."""
        return slice(self.start + self.sinks, self.length - self.window)

    @cached_property
    def attention(self) -> torch.Tensor:
        """``[Hq, W, n]``: causal softmax of the window over the whole context."""
        n, window, heads = self.length, self.window, self.heads
        queries = (self.queries * self.scale).unflatten(1, (heads, -1)).permute(1, 2, 0, 3).flatten(1, 2)
        logits = torch.bmm(queries, self.keys.permute(1, 2, 0)).view(-1, window, n)
        future = torch.ones((window, window), dtype=torch.bool, device=logits.device).triu_(1)
        # In place, through a slice: only positions of the window can lie in the future of one of its queries.
        logits[..., n - window :].masked_fill_(future, float("-inf"))
        return logits.softmax(dim=-1)

    @cached_property
    def output(self) -> torch.Tensor:
        """``[Hq, D, hidden]``: W_O by query head."""
        return self.weights()

    def group(self, scores: torch.Tensor) -> torch.Tensor:
        """Mean over the query heads of a KV head: ``[Hq, …]`` to ``[H, …]``."""
        mean: torch.Tensor = scores.unflatten(0, (self.heads, -1)).mean(dim=1)
        return mean
