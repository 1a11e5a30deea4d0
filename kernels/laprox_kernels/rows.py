"""What the rows of a decode batch attend to, addressed in slots of the KV pool."""

from typing import NamedTuple

import torch


class Rows(NamedTuple):
    """Physical layout of a batch of B rows over a pool ``[slots, L, H, D]``.

    A slot holds C = L·H cells. A row is a set of dense slots, read whole, and S segments whose
    slots hold packed cells in (layer, head, position) order. Attention of one new token does not
    depend on the order of what it attends to, so the dense slots of a row come first, wherever
    they stand in the sequence.

    Attributes:
        slots: int32 ``[B, N]``, the row's dense slots, then the slots of each segment in turn;
            what lies behind them is never read.
        dense: int64 ``[B]``, number of dense slots.
        segment_start: int64 ``[B, S]``, column of ``slots`` where a segment's slots begin.
        cu_cells: int64 ``[B, S, C + 1]``, offsets of each (layer, head) in a segment's cells; all
            zeros where a row has fewer than S segments.
    """

    slots: torch.Tensor
    dense: torch.Tensor
    segment_start: torch.Tensor
    cu_cells: torch.Tensor

    def lengths(self, layer: int, heads: int) -> torch.Tensor:
        """Number of keys each row has in every KV head of ``layer``: int64 ``[B, heads]``."""
        cu = self.cu_cells[:, :, layer * heads : (layer + 1) * heads + 1]
        return self.dense[:, None] + cu.diff(dim=-1).sum(dim=1)
