"""From the queries of a prompt's window to scores: by the fused kernel, or by a scorer, layer by layer."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch

import laprox_kernels as kernels
from laprox_sglang.layers import ScoredLayer
from laprox_sglang.options.server import Config
from laprox_sglang.projection import gram_matrices, output_weights
from laprox_sglang.ranks import Ranks
from laprox_sglang.scorers.prompt import Prompt
from laprox_sglang.scorers.rank import compare_layers, rank
from laprox_sglang.views.plan import Plan


class Scoring:
    """Scores of the prompts of one model. Nothing here waits for the device."""

    def __init__(
        self,
        config: Config,
        layers: Sequence[ScoredLayer],
        keys: torch.Tensor,
        values: torch.Tensor,
        ranks: Ranks,
    ) -> None:
        """
        Args:
            layers: of the model, all of one shape.
            keys, values: ``[slots, L, H, D]``, the whole KV pool.
            ranks: those that share the heads of these layers.
        """
        self._layers = layers
        self._keys, self._values = keys, values
        self._ranks = ranks
        self._gram = gram_matrices(layers)
        self._scale = torch.empty(len(layers), dtype=torch.float32, device=keys.device)
        self._read_scales()
        self._method = config.method

    def load_weights(self) -> None:
        """Computes the Gram matrices anew, after a weight update."""
        gram_matrices(self._layers, self._gram)
        self._read_scales()

    def _read_scales(self) -> None:
        scales = [layer.scaling * layer.key_scale(self._keys.dtype) for layer in self._layers]
        self._scale.copy_(torch.tensor(scales))

    def run(self, queries: torch.Tensor, row: torch.Tensor, plan: Plan, out: torch.Tensor) -> torch.Tensor:
        """Writes what decides on the cells behind ``plan.start``, comparable as far as they compete.

        Args:
            queries: ``[L, W, Hq, D]``, the prompt's last W.
            row: int64 ``[n]``, slot of every position.
            out: float32 ``[L, H, P]``: see ``kernels.score``.

        Returns:
            What the candidates of each layer come to in ``out``: float32 ``[L]``.
        """
        if self._method.fused:
            sums = kernels.score(
                queries, self._keys, self._values, row, plan.start, self._gram, self._scale, plan.sinks,
                self._method.pooling, out=out,
            )  # fmt: skip
        else:
            sums = rank(self._prompts(queries, row, plan), self._method.scorer, self._method.pooling, out)
        if self._method.allocation.layers_compete:
            # The one place that needs a layer's sum over all its heads, those of other ranks among them.
            # Within a layer the sum is a factor that all have in common.
            sums = self._ranks.sum(sums)
            compare_layers(out, sums, slice(plan.sinks, plan.length - plan.window))
            sums = torch.ones_like(sums)
        return sums

    def _prompts(self, queries: torch.Tensor, row: torch.Tensor, plan: Plan) -> Iterator[Prompt]:
        dtype = self._keys.dtype
        for layer in self._layers:
            yield Prompt(
                layer.index,
                queries[layer.index].float(),
                self._keys[:, layer.index][row].float().mul_(layer.key_scale(dtype)),
                self._values[:, layer.index][row].float().mul_(layer.value_scale(dtype)),
                self._gram[layer.index],
                layer.scaling,
                plan.start,
                plan.sinks,
                plan.least,
                partial(output_weights, layer),
                plan.inside,
            )
