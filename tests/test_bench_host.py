"""The benchmark of copies to host memory: pieces of slots are the slots."""

import pytest
import torch

from benchmarks.kernels.host import PIECE_BYTES, in_pieces, pieces_of, spread


@pytest.mark.parametrize(
    ("layers", "heads", "dim", "itemsize", "count"),
    [(32, 8, 128, 2, 2), (32, 8, 128, 1, 1), (28, 4, 128, 2, 1), (80, 8, 128, 2, 5)],
)
def test_a_slot_is_cut_into_the_fewest_pieces(layers, heads, dim, itemsize, count):
    size = layers * heads * dim * itemsize
    assert pieces_of(size) == count and size / count <= PIECE_BYTES and size % count == 0


def test_copied_pieces_are_copied_slots():
    pool, host = torch.randn(9, 4, 2, 8), torch.zeros(12, 4, 2, 8)
    here, there = torch.tensor([7, 2, 5]), torch.tensor([0, 11, 3])
    in_pieces(host, 2)[spread(there, 2)] = in_pieces(pool, 2)[spread(here, 2)]
    assert torch.equal(host[there], pool[here])
    assert host.count_nonzero() == 3 * pool[0].numel()
