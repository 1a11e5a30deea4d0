"""A view: the kept cells of a prompt, packed into slots of the request's own."""

from dataclasses import dataclass

import torch

from laprox_sglang.views.plan import Plan

# A view's table begins with this many numbers (start, slots, end); offsets of cells follow.
SPAN = 3


class HostCopy:
    """Copy of a tensor on its way to the host. Nobody waits for it: it is read when it is there."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._copy = tensor.to("cpu", non_blocking=True)
        self._event = torch.cuda.Event() if tensor.is_cuda else None
        if self._event is not None:
            self._event.record()

    def __len__(self) -> int:
        return len(self._copy)

    @property
    def there(self) -> bool:
        """Whether the copy has arrived, which it has once a decode step behind it has given its token."""
        return self._event is None or self._event.query()

    def tolist(self) -> list[int]:
        numbers: list[int] = self._arrived().tolist()
        return numbers

    def tobytes(self) -> bytes:
        data: bytes = self._arrived().numpy().tobytes()
        return data

    def _arrived(self) -> torch.Tensor:
        assert self.there, "read before the device has written it"
        return self._copy


@dataclass(frozen=True, slots=True, eq=False)
class Elastic:
    """What a view that may shrink knows of its cells.

    Attributes:
        least: slots that it keeps in any case.
        first: slots that it was made with.
        protected: cells of every KV head that it keeps in any case, whose scores are +inf.
        scores: float32 ``[m·C]``, what its cells were kept by, in their order.
        positions: int32 ``[m·C]``, logical columns that they are of.
        carried: as of ``pressure.Holding``.
    """

    least: int
    first: int
    protected: int
    scores: torch.Tensor
    positions: torch.Tensor
    carried: HostCopy


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """Packed cells that stand for the columns [start, end) of a request, in m slots of its own.

    The slots are named by columns [start, start + m) of the request's row; the columns from there
    to ``end`` are zero, and the dense tail of generated tokens follows from ``end``.

    Attributes:
        start, end: logical columns that the view stands for.
        own: int64 ``[m]``, its slots. The row says the same, but is written on the forward stream.
        layers: number of layers L.
        table: int64 ``[SPAN + C + 1]``: start, m, end, then ``cu_cells``; what a decode batch copies.
        host_counts: ``told.counts``, of all ranks, for the report.
        positions: ``told.positions``, of all ranks, where they were asked for.
        elastic: None if it has no more than its request is promised.
    """

    start: int
    end: int
    own: torch.Tensor
    layers: int
    table: torch.Tensor
    host_counts: HostCopy
    positions: HostCopy | None = None
    elastic: Elastic | None = None

    @classmethod
    def of(
        cls,
        plan: "Plan | View",
        own: torch.Tensor,
        layers: int,
        cu_cells: torch.Tensor,
        counts: torch.Tensor,
        positions: torch.Tensor | None = None,
        elastic: Elastic | None = None,
    ) -> "View":
        """The view that a selection comes to; enqueued, nothing is waited for.

        Args:
            plan: which columns it stands for; a view of them will do.
            own: int64 ``[m]``, the slots that the cells were packed into.
            counts, positions: as ``host_counts`` and ``positions``, on the device.
        """
        table = cu_cells.new_empty(SPAN + len(cu_cells))
        # ``fill_`` does not wait for the device; assigning a Python number, or making a tensor of some,
        # would.
        for place, number in enumerate((plan.start, len(own), plan.end)):
            table[place].fill_(number)
        table[SPAN:] = cu_cells
        copied = None if positions is None else HostCopy(positions)
        return cls(plan.start, plan.end, own, layers, table, HostCopy(counts), copied, elastic)

    @property
    def slots(self) -> int:
        """Number of its slots m."""
        return len(self.own)

    @property
    def surplus(self) -> int:
        """Slots that it gives back when the pool is short."""
        return self.slots - self.elastic.least if self.elastic else 0

    @property
    def cu_cells(self) -> torch.Tensor:
        """int64 ``[C + 1]``, offsets of each (layer, head) among the m·C packed cells."""
        return self.table[SPAN:]

    @property
    def heads(self) -> int:
        """KV heads of a layer, on all ranks."""
        return (len(self.host_counts) - 2) // self.layers

    @property
    def kept_cells(self) -> int:
        """Packed cells, on all ranks."""
        return self.slots * self.layers * self.heads

    @property
    def spared(self) -> int:
        """Logical columns that hold no slot."""
        return self.end - self.start - self.slots

    def check_integrity(self, row: torch.Tensor) -> None:
        """Asserts that the view is whole and stands in ``row`` as it says."""
        cells = self.cu_cells.numel() - 1
        assert 0 <= self.start < self.start + self.slots <= self.end <= row.numel()
        assert int(self.cu_cells[0]) == 0 and int(self.cu_cells[-1]) == self.slots * cells
        assert bool((self.cu_cells.diff() >= 0).all())
        assert bool((self.own > 0).all()) and self.own.unique().numel() == self.slots
        assert torch.equal(row[self.start : self.start + self.slots].long(), self.own)
        assert not bool(row[self.start + self.slots : self.end].any())
        if self.elastic is not None:
            assert self.elastic.least < self.slots <= self.elastic.first
            assert len(self.elastic.scores) == len(self.elastic.positions) == self.slots * cells
