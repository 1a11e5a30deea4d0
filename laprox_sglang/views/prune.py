"""From the queries of a prompt's window to a view: score, select, pack."""

from collections.abc import Sequence

import torch

import laprox_kernels as kernels
from laprox_sglang.layers import ScoredLayer
from laprox_sglang.options.server import Config
from laprox_sglang.ranks import Ranks
from laprox_sglang.scorers.allocators import keep
from laprox_sglang.views import told
from laprox_sglang.views.plan import Plan
from laprox_sglang.views.score import Scoring
from laprox_sglang.views.stages import Stages
from laprox_sglang.views.view import View


class Pruner:
    """Makes views, one after the other, in one buffer of scores. Nothing here waits for the device.

    Attributes:
        longest: tokens of the longest prompt.
        stages: what each stage of that takes.
    """

    def __init__(
        self,
        config: Config,
        layers: Sequence[ScoredLayer],
        keys: torch.Tensor,
        values: torch.Tensor,
        req_to_token: torch.Tensor,
        longest: int,
        ranks: Ranks,
    ) -> None:
        """
        Args:
            layers, ranks: as of ``Scoring``.
            keys, values: ``[slots, L, H, D]``, the whole KV pool.
            req_to_token: int32 ``[rows, context]``, slot of each logical column of a request's row.
            longest: as the attribute.
        """
        self.longest = longest
        self._keys, self._values = keys, values
        self._req_to_token = req_to_token
        self._layers, self._heads = keys.shape[1:3]
        self._scoring = Scoring(config, layers, keys, values, ranks)
        self._ranks = ranks
        self._allocation = config.method.allocation
        cells = self._layers * self._heads
        self._scores = torch.empty(longest * cells, dtype=torch.float32, device=keys.device)
        self.stages = Stages(keys.is_cuda)

    def load_weights(self) -> None:
        """Makes what is derived of the weights anew, after an update."""
        self._scoring.load_weights()

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
            positions: keep the positions of the cells for a report.
        """
        columns = self._req_to_token[row_index]
        row = columns[: plan.end].long()
        cu_cells, counts, kept_positions = self.pack(queries, plan, row, slots, staged, positions)
        columns[plan.start : plan.start + plan.least] = slots.int()
        columns[plan.start + plan.least : plan.end] = 0
        return View.of(plan, slots, self._layers, cu_cells, counts, kept_positions)

    def pack(
        self,
        queries: torch.Tensor,
        plan: Plan,
        row: torch.Tensor,
        slots: torch.Tensor,
        staged: bool,
        positions: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Offsets of each (layer, head) of this rank among its kept cells; of all ranks ``told.counts``, and
        positions, where they are asked for."""
        cells = self._layers * self._heads
        scores = self._scores[: cells * plan.length].view(self._layers, self._heads, plan.length)
        self.stages.start()
        self._scoring.run(queries[:, -plan.window :], row, plan, scores)
        for first, beyond in plan.spans:
            scores[..., first - plan.start : beyond - plan.start].fill_(float("inf"))
        self.stages.done("score")
        kept, cu_cells = keep(scores, plan.least, self._allocation, plan.protected, ranks=self._ranks)
        self.stages.done("select")
        at = kept.new_empty(kept.numel(), dtype=torch.int32) if positions else None
        kernels.pack(self._keys, self._values, row[plan.start :], kept, slots, staged, at)
        counts = told.counts(kept, cu_cells, self._layers, plan.length, self._ranks)
        if at is not None:
            at = told.positions(at.add_(plan.start), cu_cells, self._layers, self._ranks)
        self.stages.done("pack")
        return cu_cells, counts, at
