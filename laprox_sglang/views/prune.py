"""From the queries of a prompt's window to a view: score, select, pack. And from a view to a smaller one."""

from collections.abc import Sequence
from dataclasses import replace

import torch

import laprox_kernels as kernels
from laprox_sglang.layers import ScoredLayer
from laprox_sglang.options.server import Config
from laprox_sglang.ranks import Ranks
from laprox_sglang.scorers.allocators import keep, keep_fewer
from laprox_sglang.views import told
from laprox_sglang.views.plan import Plan
from laprox_sglang.views.score import Scoring
from laprox_sglang.views.stages import Stages
from laprox_sglang.views.view import Elastic, HostCopy, View


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
        # A floor overwrites scores, and views that may shrink keep theirs.
        marks = config.elastic and self._allocation.floor > 0
        self._marked = torch.empty_like(self._scores) if marks else None
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
            slots: int64 ``[m]``, from ``plan.least`` to ``plan.most``.
            staged: ``slots`` may be among those that the prompt is read from.
            positions: keep the positions of the cells for a report.
        """
        columns = self._req_to_token[row_index]
        row = columns[: plan.end].long()
        view = self.pack(queries, plan, row, slots, staged, positions)
        columns[plan.start : plan.start + len(slots)] = slots.int()
        columns[plan.start + len(slots) : plan.end] = 0
        return view

    def pack(
        self,
        queries: torch.Tensor,
        plan: Plan,
        row: torch.Tensor,
        slots: torch.Tensor,
        staged: bool,
        positions: bool,
    ) -> View:
        """``make_view`` of the prompt whose slots are ``row``, int64 ``[n]``; nothing is named anywhere."""
        cells = self._layers * self._heads
        scores = self._scores[: cells * plan.length].view(self._layers, self._heads, plan.length)
        shrinkable = len(slots) > plan.least
        self.stages.start()
        sums = self._scoring.run(queries[:, -plan.window :], row, plan, scores)
        for first, beyond in plan.spans:
            scores[..., first - plan.start : beyond - plan.start].fill_(float("inf"))
        self.stages.done("score")
        marked = self._marks(scores) if shrinkable else None
        kept, cu_cells = keep(scores, len(slots), self._allocation, plan.protected, marked, self._ranks)
        self.stages.done("select")
        at = kept.new_empty(kept.numel(), dtype=torch.int32) if positions or shrinkable else None
        kernels.pack(self._keys, self._values, row[plan.start :], kept, slots, staged, at)
        counts = told.counts(kept, cu_cells, self._layers, plan.length, self._ranks)
        if at is not None:
            at.add_(plan.start)
        elastic = self._elastic(plan, scores.flatten()[kept], sums, len(slots), at) if shrinkable else None
        if at is not None:
            at = told.positions(at, cu_cells, self._layers, self._ranks) if positions else None
        self.stages.done("pack")
        return View.of(plan, slots, self._layers, cu_cells, counts, at, elastic)

    def _marks(self, scores: torch.Tensor) -> torch.Tensor | None:
        """Where a floor is marked in place of ``scores``, which stay."""
        return None if self._marked is None else self._marked[: scores.numel()].view_as(scores)

    def _elastic(
        self, plan: Plan, scores: torch.Tensor, sums: torch.Tensor, slots: int, at: torch.Tensor | None
    ) -> Elastic:
        assert at is not None
        carried = told.carried(scores, sums, plan, slots, self._allocation)
        return Elastic(plan.least, slots, plan.protected, scores, at, HostCopy(carried))

    def shrink_view(self, view: View, row_index: int, slots: int) -> View:
        """The same prompt's view of ``slots`` slots, in the first of its own; the row says so.

        It is what ``make_view`` would have made of the prompt for so many, cell for cell.

        Args:
            slots: from ``view.elastic.least`` to less than it has.
        """
        smaller = self.repack(view, slots)
        self._req_to_token[row_index][view.start + slots : view.start + view.slots] = 0
        return smaller

    def repack(self, view: View, slots: int) -> View:
        """``shrink_view`` without a row."""
        elastic, cells = view.elastic, self._layers * self._heads
        assert elastic is not None and elastic.least <= slots < view.slots
        self.stages.start()
        kept, cu_cells = keep_fewer(
            elastic.scores,
            view.cu_cells,
            self._layers,
            slots,
            self._allocation,
            elastic.protected,
            self._marks(elastic.scores),
        )
        source = view.own[kept // cells].mul_(cells).add_(kept % cells)
        own = view.own[:slots]
        # Among the slots that are read: what is packed to the front is read by others behind it.
        kernels.pack(self._keys, self._values, None, source, own, staged=True)
        positions = elastic.positions[kept]
        behind_start = positions.long().sub_(view.start)
        counts = told.counts(behind_start, cu_cells, self._layers, view.end - view.start, self._ranks)
        asked = None if view.positions is None else positions
        left = None
        if slots > elastic.least:
            left = replace(elastic, scores=elastic.scores[kept], positions=positions)
        self.stages.done("shrink")
        return View.of(view, own, self._layers, cu_cells, counts, asked, left)
