"""Random prompts for the scorers' tests, in fresh shapes, and what their cells come to."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from laprox_sglang.scorers.prompt import Prompt

# On tensors this small threads only wait for each other.
torch.set_num_threads(1)


@dataclass
class Case:
    """A prompt of ``n`` positions in a pool of all layers."""

    queries: torch.Tensor  # [L, W, Hq, D]
    pool: torch.Tensor  # [2, slots, L, H, D]
    row: torch.Tensor  # [n]
    output: torch.Tensor  # [L, Hq, D, hidden]
    scale: float
    start: int
    sinks: int
    slots: int

    @property
    def gram(self) -> torch.Tensor:
        return self.output @ self.output.mT

    @property
    def protected(self) -> int:
        return self.sinks + self.queries.shape[1]

    @property
    def candidates(self) -> slice:
        """Of the positions behind ``start``."""
        return slice(self.sinks, len(self.row) - self.start - self.queries.shape[1])

    def layers(self) -> Iterator[Prompt]:
        keys, values = self.pool
        for layer in range(len(self.queries)):
            weights = self.output[layer].clone
            yield Prompt(
                layer, self.queries[layer], keys[self.row, layer], values[self.row, layer], self.gram[layer],
                self.scale, self.start, self.sinks, self.slots, weights,
            )  # fmt: skip

    def unwritten(self) -> torch.Tensor:
        """Room for scores ``[L, H, P]``."""
        layers, heads = self.pool.shape[2:4]
        return torch.full((layers, heads, len(self.row) - self.start), float("nan"), device=self.pool.device)


def random_case(seed: int, device: str = "cpu", most: int = 90) -> Case:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    layers, heads, group = draw.randint(1, 3), draw.randint(1, 3), draw.randint(1, 3)
    dim, window, hidden = draw.choice([4, 8]), draw.randint(1, 6), draw.randint(3, 20)
    start, sinks = draw.choice([0, draw.randint(1, 9)]), draw.choice([0, draw.randint(1, 4)])
    n = start + sinks + window + draw.randint(8, most)
    slots = draw.randint(sinks + window, n - start - 1)
    queries = 2 * torch.randn((layers, window, heads * group, dim))
    pool = torch.randn((2, n + 9, layers, heads, dim))
    # Layers of very different size: only the division by their sums makes them comparable.
    size = torch.logspace(-2, 2, layers).view(-1, 1, 1, 1)
    output = torch.randn((layers, heads * group, dim, hidden)) * size
    row = torch.randperm(n + 9)[:n]
    tensors = (tensor.to(device) for tensor in (queries, pool, row, output))
    return Case(*tensors, dim**-0.5, start, sinks, slots)
