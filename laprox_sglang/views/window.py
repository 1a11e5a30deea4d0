"""The queries that score a prompt: those of its last W positions, saved as they pass by."""

from typing import NamedTuple

import torch

from laprox_sglang.views.state import RequestState


class Part(NamedTuple):
    """Where a forward pass computes window queries of a request: ``tokens`` of its batch."""

    state: RequestState
    tokens: slice

    @property
    def length(self) -> int:
        return int(self.tokens.stop - self.tokens.start)


class Window:
    """Window queries of the forward pass at hand, side by side in one buffer ``[L, T, Hq·D]``."""

    def __init__(self, layers: int, length: int) -> None:
        """
        Args:
            length: W.
        """
        self._layers, self._length = layers, length
        self._parts: list[Part] = []
        self._buffer: torch.Tensor | None = None

    def expect(self, parts: list[Part]) -> None:
        self._parts = parts
        self._buffer = None

    @property
    def empty(self) -> bool:
        return not self._parts

    def save(self, layer: int, queries: torch.Tensor) -> None:
        """Takes what belongs to the window out of ``queries`` ``[tokens, Hq·D]``, after RoPE."""
        if not self._parts:
            return
        queries = queries.flatten(1)
        if self._buffer is None:
            length = sum(part.length for part in self._parts)
            self._buffer = queries.new_empty((self._layers, length, queries.shape[1]))
        # One launch a layer, however many prompts there are.
        torch.cat([queries[part.tokens] for part in self._parts], out=self._buffer[layer])

    def hand_over(self, head_dim: int) -> None:
        """Gives every request its queries ``[L, ≤ W, Hq, D]``, together with those of earlier chunks."""
        if self._buffer is not None:
            saved = self._buffer.view(*self._buffer.shape[:2], -1, head_dim)
            for part, queries in zip(
                self._parts, saved.split([part.length for part in self._parts], dim=1), strict=True
            ):
                if part.state.queries is not None:
                    queries = torch.cat([part.state.queries, queries], dim=1)
                elif part.length < self._length:
                    # The rest comes with the next chunk. A copy, since a slice would keep the whole buffer
                    # alive until then.
                    queries = queries.clone()
                part.state.queries = queries
        self.expect([])
