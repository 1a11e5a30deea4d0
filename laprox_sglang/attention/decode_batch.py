"""The decode batch at hand: which of its rows are compressed, and where their KV lies."""

import torch

import laprox_kernels as kernels
from laprox_kernels import Rows
from laprox_sglang.views.view import SPAN, View


class DecodeBatch:
    """Copies of what a compressed decode batch attends to, made before each step.

    Nothing that a step runs reads ``req_to_token``: the schedule stream writes to it while a captured
    graph is still at work. A graph reads buffers that were made for it once; a step without a graph
    gets new ones, no longer than its rows.

    Attributes:
        compressed: the batch has a compressed row. If it has none, stock serves it alone.
        rows, plan: what ``kernels.decode`` takes; None unless the batch at hand is compressed.
    """

    def __init__(self, req_to_token: torch.Tensor, layers: int, heads: int) -> None:
        """
        Args:
            req_to_token: int32 ``[rows, context]``, slot of each logical column of a request's row.
        """
        self.compressed = False
        self.rows: Rows | None = None
        self.plan: torch.Tensor | None = None
        self._req_to_token = req_to_token
        self._cells = (layers, heads)
        self._whole = torch.zeros(SPAN + layers * heads + 1, dtype=torch.int64, device=req_to_token.device)
        # Of the rows' views; the views themselves are held by their requests alone, with all that they know.
        self._tables: list[torch.Tensor] = []
        self._longest = 0
        self._graph_tables, self._graph_rows = self._buffers(0, 0)
        self._in_graph: list[torch.Tensor] = []

    def take_step(self, views: list[View | None], lengths: list[int]) -> None:
        """Takes the rows of a decode step, whose new columns have their slots already.

        Args:
            lengths: logical columns that each row may have, the new one included.
        """
        self.forget()
        self._tables = [view.table if view else self._whole for view in views]
        self.compressed = any(views)
        if self.compressed:
            slots = (
                length - (view.spared if view else 0) for view, length in zip(views, lengths, strict=True)
            )
            self._longest = max(slots)

    def begin_capture(self, compressed: bool) -> None:
        """Takes the dummy rows of a graph's capture, which belong to no request."""
        self.forget()
        self.compressed = compressed

    def forget(self) -> None:
        self._tables = []
        self.compressed = False
        self.rows = self.plan = None

    def compile(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Runs one step without a graph, so that its kernel is compiled for every batch, length and layer.

        Args:
            queries: ``[1, Hq, D]``, of any content.
            keys, values: ``[slots, L, H, D]``, the whole KV pool.
        """
        self._tables, self._longest = [self._whole], 1
        row = torch.zeros(1, dtype=torch.int64, device=queries.device)
        self.prepare(row, row + 1)
        assert self.rows is not None
        kernels.decode(queries, keys, values, 0, self.rows, 1.0, self.plan)
        self.forget()

    def allocate(self, batch: int) -> None:
        """Makes the buffers that graphs of up to ``batch`` rows will read."""
        self._graph_tables, self._graph_rows = self._buffers(batch, self._req_to_token.shape[1])
        self._in_graph = []

    def prepare(self, req_pool_indices: torch.Tensor, seq_lens: torch.Tensor) -> None:
        """Lays out the batch for a step without a graph.

        Args:
            req_pool_indices: int64 ``[B]``, rows of ``req_to_token``.
            seq_lens: int64 ``[B]``, logical lengths, the new token included.
        """
        tables, rows = self._buffers(len(seq_lens), self._longest)
        torch.stack(self._tables, out=tables)
        kernels.layout(self._req_to_token, req_pool_indices, seq_lens, tables[:, :SPAN], rows)
        self.rows = rows
        self.make_plan()

    def prepare_graph(self, req_pool_indices: torch.Tensor, seq_lens: torch.Tensor) -> None:
        """Lays out the batch for a replay, or for a capture; ``make_plan`` is part of the graph."""
        batch = len(seq_lens)
        rows = self._tables + [self._whole] * (batch - len(self._tables))
        tables = self._graph_tables[:batch]
        if list(map(id, rows)) != list(map(id, self._in_graph)):
            torch.stack(rows, out=tables)
            self._in_graph = rows
        self.rows = Rows(*(buffer[:batch] for buffer in self._graph_rows))
        kernels.layout(self._req_to_token, req_pool_indices, seq_lens, tables[:, :SPAN], self.rows)

    def make_plan(self) -> None:
        assert self.rows is not None
        self.plan = kernels.plan_decode(self.rows, *self._cells)

    def _buffers(self, batch: int, columns: int) -> tuple[torch.Tensor, Rows]:
        """Tables ``[batch, SPAN + C + 1]`` of the rows' views, and rows whose ``cu_cells`` lie in them."""
        device = self._req_to_token.device
        tables = torch.zeros((batch, len(self._whole)), dtype=torch.int64, device=device)
        rows = Rows(
            slots=torch.empty((batch, columns), dtype=torch.int32, device=device),
            dense=torch.empty(batch, dtype=torch.int64, device=device),
            segment_start=torch.empty((batch, 1), dtype=torch.int64, device=device),
            cu_cells=tables[:, None, SPAN:],
        )
        return tables, rows
