"""From the queries of a prompt's window to a view: score, select, pack."""

from collections.abc import Sequence
from itertools import product

import torch

import laprox_kernels as kernels
from laprox_sglang.layers import ScoredLayer
from laprox_sglang.options.server import Config
from laprox_sglang.ranks import Ranks
from laprox_sglang.scorers.allocators import keep
from laprox_sglang.views.plan import Plan
from laprox_sglang.views.score import Scoring
from laprox_sglang.views.stages import Stages
from laprox_sglang.views.view import View


class Pruner:
    """Makes views, one after the other, in one buffer of scores. Nothing here waits for the device.

    Attributes:
        stages: what that takes.
    """

    def __init__(
        self,
        config: Config,
        layers: Sequence[ScoredLayer],
        keys: torch.Tensor,
        values: torch.Tensor,
        req_to_token: torch.Tensor,
        longest: int,
        dtype: torch.dtype,
        ranks: Ranks,
    ) -> None:
        """
        Args:
            layers, ranks: as of ``Scoring``.
            keys, values: ``[slots, L, H, D]``, the whole KV pool.
            req_to_token: int32 ``[rows, context]``, slot of each logical column of a request's row.
            longest: tokens of the longest prompt.
            dtype: of the queries.

        Raises:
            BadScorer: as of ``Scoring``.
            Unsupported: no kernel serves this pool or window on this device.
        """
        self._config = config
        self._keys, self._values = keys, values
        self._req_to_token = req_to_token
        self._layers, self._heads = keys.shape[1:3]
        self._scoring = Scoring(config, layers, keys, values, ranks)
        self._allocation = config.method.allocation
        cells = self._layers * self._heads
        self._scores = torch.empty(longest * cells, dtype=torch.float32, device=keys.device)
        window = (self._layers, config.longest_window, layers[0].query_heads, keys.shape[3])
        queries = torch.zeros(window, dtype=dtype, device=keys.device)
        kernels.check_serving(keys, values, queries)
        self.stages = Stages(keys.is_cuda)
        if keys.is_cuda:
            self.compile(queries)
            self.stages = Stages(keys.is_cuda)

    def load_weights(self) -> None:
        """Makes what is derived of the weights anew, after an update."""
        self._scoring.load_weights()

    def compile(self, queries: torch.Tensor) -> None:
        """Runs all that prunes a prompt, for every kind of length: later ones find it compiled.

        What it writes into the pool is never read: no slot has been given out yet.
        """
        cells = self._layers * self._heads
        longest = min(len(self._keys) - 1, self._scores.numel() // cells)
        compete = cells if self._allocation.scope == "model" else self._heads
        for tokens in kernels.lengths_of_every_kind(compete, self._config.min_tokens, longest):
            row = torch.arange(1, tokens + 1, device=queries.device)
            # Triton compiles anew for a number of kept cells that is a multiple of 16: try one of either
            # kind.
            kinds = product(self._config.windows, (1, min(16, tokens)), (False, True), (False, True))
            for window, slots, staged, positions in kinds:
                plan = Plan(0, tokens, slots, 0, window, None)
                self._pack(queries, plan, row, row[:slots], staged, positions)

    def make_view(
        self,
        plan: Plan,
        row_index: int,
        queries: torch.Tensor,
        slots: torch.Tensor,
        staged: bool,
        positions: bool,
    ) -> View:
        """Packs the kept cells of a prompt into ``slots``, and names these in the request's row.

        Args:
            row_index: row of ``req_to_token``, which still names the slots of the whole prompt.
            queries: ``[L, W, Hq, D]``, the prompt's last, as many as the longest window has.
            slots: int64 ``[m]``.
            staged: ``slots`` may be among those that the prompt is read from.
            positions: keep the positions of the packed cells for a report.
        """
        columns = self._req_to_token[row_index]
        row = columns[: plan.end].long()
        kept, cu_cells, kept_positions = self._pack(queries, plan, row, slots, staged, positions)
        columns[plan.start : plan.start + plan.slots] = slots.int()
        columns[plan.start + plan.slots : plan.end] = 0
        return View.of(plan, slots, self._layers, cu_cells, tokens_of(kept, plan.length), kept_positions)

    def _pack(
        self,
        queries: torch.Tensor,
        plan: Plan,
        row: torch.Tensor,
        slots: torch.Tensor,
        staged: bool,
        positions: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The kept cells, offsets of each (layer, head) among them, and their positions."""
        cells = self._layers * self._heads
        scores = self._scores[: cells * plan.length].view(self._layers, self._heads, plan.length)
        self.stages.start()
        self._scoring.run(queries[:, -plan.window :], row, plan, scores)
        for first, beyond in plan.spans:
            scores[..., first - plan.start : beyond - plan.start].fill_(float("inf"))
        self.stages.done("score")
        kept, cu_cells = keep(scores, plan.slots, self._allocation, plan.protected)
        self.stages.done("select")
        at = kept.new_empty(kept.numel(), dtype=torch.int32) if positions else None
        kernels.pack(self._keys, self._values, row[plan.start :], kept, slots, staged, at)
        self.stages.done("pack")
        return kept, cu_cells, None if at is None else at.add_(plan.start)


def tokens_of(kept: torch.Tensor, length: int) -> torch.Tensor:
    """Number of tokens of which some layer and head keeps a cell, on the device: int64 ``[]``.

    Args:
        kept: int64 ``[K]``, indices into ``[L, H, length]``.
    """
    seen = torch.zeros(length, dtype=torch.bool, device=kept.device)
    return seen.index_fill_(0, kept % length, True).sum()
