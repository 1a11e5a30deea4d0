"""What one server, stock or LaProx, is estimated to hold: its KV pool, and the requests in it."""

from typing import NamedTuple

import msgspec

from laprox_sglang.views.capacity import Hold
from laprox_sglang.views.memory import most_running, slot_bytes
from laprox_tools.plan.model_config import Model

# That share the heads of a layer: a server has one card.
RANKS = 1


class Pool(NamedTuple):
    """A KV pool, and what a request takes of it."""

    model: Model
    pool_bytes: int
    itemsize: int
    hold: Hold

    @property
    def slot_bytes(self) -> int:
        return slot_bytes(self.model, RANKS, self.itemsize)

    @property
    def slots(self) -> int:
        return self.pool_bytes // self.slot_bytes

    @property
    def requests(self) -> int:
        """How many run at once."""
        return min(self.hold.requests(self.slots), most_running(self.slots, self.model.context_len))


class Estimate(msgspec.Struct, frozen=True):
    """A server of one kind, stock or LaProx.

    Attributes:
        fraction: ``--mem-fraction-static``.
        reserved: bytes that LaProx needs, by purpose.
        slots: size of the KV pool.
        slot_bytes: K and V of one token.
        held: slots of one request at its last step, beside what all of them have in common.
        requests: how many run at once.
        step_bytes: read by a decode step of ``Comparison.compared`` requests, weights included.
    """

    fraction: float
    reserved: dict[str, int]
    slots: int
    slot_bytes: int
    held: int
    requests: int
    step_bytes: int


def estimate(fraction: float, reserved: dict[str, int], pool: Pool, compared: int, read: int) -> Estimate:
    """
    Args:
        read: tokens of KV that a decode step reads of a request, half-way through its answer.
    """
    step = pool.model.weights + compared * read * pool.slot_bytes
    return Estimate(fraction, reserved, pool.slots, pool.slot_bytes, pool.hold.each, pool.requests, step)
