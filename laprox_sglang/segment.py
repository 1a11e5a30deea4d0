"""What pruning leaves of a private range, and the state a request carries for it."""

from dataclasses import dataclass
from typing import Any

import torch

from laprox_sglang.config import Options
from laprox_sglang.plan import Plan

# Numbers of a segment's table before its offsets of cells.
SPAN = 3


class HostCopy:
    """Copy of a tensor on its way to the host; only reading it waits for the device."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._copy = tensor.to("cpu", non_blocking=True)
        self._event = torch.cuda.Event() if tensor.is_cuda else None
        if self._event is not None:
            self._event.record()

    def tolist(self) -> list[int]:
        if self._event is not None:
            self._event.synchronize()
        numbers: list[int] = self._copy.tolist()
        return numbers


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Packed cells of the private range [start, end), held in ``slots`` slots.

    They stand in columns [start, start + slots) of the request's row; the columns from there to
    ``end`` are zero, and the dense tail follows from ``end``.

    Attributes:
        start, end: logical columns that the segment stands for.
        slots: number of slots m.
        layers: number of layers L.
        table: int64 ``[SPAN + C + 1]``: start, m, end, then ``cu_cells``; what a decode batch copies.
        host_cu_cells: ``cu_cells`` for the report.
        positions: ``[m·C]`` token positions of the packed cells, where they were asked for.
    """

    start: int
    end: int
    slots: int
    layers: int
    table: torch.Tensor
    host_cu_cells: HostCopy
    positions: HostCopy | None = None

    @classmethod
    def of(
        cls, plan: Plan, layers: int, cu_cells: torch.Tensor, positions: torch.Tensor | None = None
    ) -> "Segment":
        """The segment that ``plan`` and its selection come to; enqueued, nothing is waited for."""
        table = cu_cells.new_empty(SPAN + len(cu_cells))
        # Fills: an assignment, or a tensor made of Python numbers, would wait for the device.
        for place, number in enumerate((plan.start, plan.slots, plan.end)):
            table[place].fill_(number)
        table[SPAN:] = cu_cells
        copied = None if positions is None else HostCopy(positions)
        return cls(plan.start, plan.end, plan.slots, layers, table, HostCopy(cu_cells), copied)

    @property
    def cu_cells(self) -> torch.Tensor:
        """int64 ``[C + 1]``, offsets of each (layer, head) among the m·C packed cells."""
        return self.table[SPAN:]

    @property
    def heads(self) -> int:
        return (self.cu_cells.numel() - 1) // self.layers

    @property
    def freed(self) -> int:
        return self.end - self.start - self.slots

    def check_integrity(self, row: torch.Tensor) -> None:
        """Asserts that the segment is whole and stands in ``row`` as it says."""
        cells = self.cu_cells.numel() - 1
        assert 0 <= self.start < self.start + self.slots < self.end <= row.numel()
        assert int(self.cu_cells[0]) == 0 and int(self.cu_cells[-1]) == self.slots * cells
        assert bool((self.cu_cells.diff() >= 0).all())
        held = row[self.start : self.start + self.slots]
        assert bool((held > 0).all()) and held.unique().numel() == self.slots
        assert not bool(row[self.start + self.slots : self.end].any())


@dataclass(slots=True)
class RequestState:
    """LaProx state of a request, from its admission on (``req.laprox``).

    Attributes:
        options: what the request asked for.
        plan: fixed at admission; None before it and after the request's slots were given back.
        segment: set once the last chunk has been pruned; None again after release.
        window_queries: ``[L, W, Hq, D]``, the last W queries while they come in over several chunks.
        outcome: what became of the last prefill, kept for the report after release.
        held: slots that the request referred to at its last step.
    """

    options: Options
    plan: Plan | None = None
    segment: Segment | None = None
    window_queries: torch.Tensor | None = None
    outcome: "Outcome | None" = None
    held: int = 0

    @property
    def will_prune(self) -> bool:
        return self.plan is not None and self.plan.pruned

    def release(self, held: int) -> None:
        """Forgets the slots, which the caller gives back; ``held`` of them, shared ones included."""
        self.plan = self.segment = self.window_queries = None
        self.held = held


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a prefill came to.

    Attributes:
        plan: the plan it followed.
        slots_before: slots the private range held after the prefill: one per token.
        slots_after: what is left of them, less what the allocator's own count says came back.
        segment: None if the range was left whole.
    """

    plan: Plan
    slots_before: int
    slots_after: int
    segment: Segment | None


def segment_of(req: Any) -> Segment | None:
    """Segment of an SGLang ``Req``, if its prompt has been pruned."""
    state: RequestState | None = getattr(req, "laprox", None)
    return state.segment if state else None
