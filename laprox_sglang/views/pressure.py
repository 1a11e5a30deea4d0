"""Who gives slots back when the pool is short, and how many a new view gets: arithmetic on the host."""

from bisect import bisect_left
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from math import inf
from typing import NamedTuple

# Parts that a view's slots beyond its guarantee are given back in; the slots of a part have one price.
PARTS = 32
# Given back at once for each view that can: a step of decoding takes one slot for each, so that a full pool
# costs a round of launches every so many steps.
AHEAD = 16
# Parts of the pool that are free or evictable: a new view has all that it may have from AMPLE on, and what it
# is promised below SCARCE.
SCARCE, AMPLE = 0.1, 0.5


class Holding(NamedTuple):
    """A view, by its numbers of slots.

    Attributes:
        least: what its request is promised.
        slots: what it has now.
        first: what it had when it was made.
        carried: share of its prompt's contribution that its best slots carry, as many as ``ends`` says; None
            as long as the device has not told.
    """

    least: int
    slots: int
    first: int
    carried: Sequence[float] | None

    @property
    def ends(self) -> list[int]:
        """Of the parts: ``PARTS`` + 1 numbers of slots from ``least`` to ``first``, of which some may be
        alike."""
        return [self.least + part * (self.first - self.least) // PARTS for part in range(PARTS + 1)]


def price(carried: float, slots: int) -> float:
    """What the slots of all requests are ranked by, the cheapest first: share of its prompt that one carries.

    Args:
        carried: share that ``slots`` slots carry together.
    """
    return carried / slots


def give_back(views: Sequence[Holding], short: int) -> list[int]:
    """How many slots each view keeps, so that the others make up for ``short``, or for all that there are.

    The sum of what prompts lose, each a share of its own, is as small as it can be. Of equals the view that
    comes first gives.
    """
    ends = [view.ends for view in views]
    left = [view.slots for view in views]

    def cheapest(i: int) -> tuple[float, int, int]:
        """A view's next part to give: its price, the view, and the slots that are left without it."""
        carried = views[i].carried
        low = bisect_left(ends[i], left[i]) - 1
        if carried is None:
            return inf, i, ends[i][low]
        return price(carried[low + 1] - carried[low], ends[i][low + 1] - ends[i][low]), i, ends[i][low]

    can = [i for i, view in enumerate(views) if view.slots > view.least]
    short = min(max(short, AHEAD * len(can)), sum(views[i].slots - views[i].least for i in can))
    queue = [cheapest(i) for i in can]
    heapify(queue)
    while short > 0:
        _, i, low = heappop(queue)
        given = min(short, left[i] - low)
        left[i] -= given
        short -= given
        if left[i] > views[i].least:
            heappush(queue, cheapest(i))
    return left


def first_slots(least: int, most: int, free: int, size: int) -> int:
    """Slots of a new view, from ``least`` to ``most``.

    Args:
        free: slots of the pool that are free or evictable beside its ``least``.
        size: of the pool.
    """
    room = (free / size - SCARCE) / (AMPLE - SCARCE)
    return least + int((most - least) * min(1.0, max(0.0, room)))
