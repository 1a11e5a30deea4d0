"""The ranks that share the heads of every layer of a model: what each of them holds, and what they add up.

They decide alike without asking each other; docs/architecture.md says what that forbids a decision to read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from laprox_sglang.ports import ModelShape


@dataclass(frozen=True)
class Ranks:
    """
    Attributes:
        size: how many they are.
        index: which of them this is, from 0 on.
        sum: the sum over all of them of a float32 tensor, enqueued on the current stream; every rank has to
            ask for it. What it returns is the sum. What it was given may hold the same, or may not.
    """

    size: int
    index: int
    sum: Callable[[torch.Tensor], torch.Tensor]

    def gather(self, numbers: torch.Tensor) -> torch.Tensor:
        """What each of them gives, in their order: whole numbers below 2^24, ``[size, *]``, as float32."""
        if self.size == 1:
            return numbers[None].float()
        parts = torch.zeros((self.size, *numbers.shape), device=numbers.device)
        parts[self.index] = numbers
        return self.sum(parts)


ONE_RANK = Ranks(1, 0, lambda tensor: tensor)


class Heads(NamedTuple):
    """Of a layer, on one rank."""

    query: int
    kv: int


def heads_of_rank(model: ModelShape, ranks: int) -> Heads:
    """The same for every rank. Where there are more ranks than KV heads, some hold the same one.

    Args:
        ranks: how many share the heads of a layer.
    """
    return Heads(model.num_attention_heads // ranks, model.get_num_kv_heads(ranks))
