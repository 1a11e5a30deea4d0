"""Who gives slots back when the pool is short, and how many a new view gets: arithmetic on the host."""

from bisect import bisect_left
from collections.abc import Sequence
from heapq import heapify, heapreplace
from math import inf
from typing import NamedTuple

# Steps between a view's guarantee and its first size, at whose ends it is known what its slots carry.
STEPS = 32
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
        carried: share of its prompt's contribution that as many of its best slots carry as ``points`` says,
            ascending; None as long as the device has not said it.
    """

    least: int
    slots: int
    first: int
    carried: Sequence[float] | None

    @property
    def points(self) -> list[int]:
        """``STEPS`` + 1 numbers of slots, from ``least`` to ``first``; where these are near, some are alike."""
        return [self.least + step * (self.first - self.least) // STEPS for step in range(STEPS + 1)]


def price(carried: Sequence[float], low: int, high: int, slots: int) -> float:
    """The ranking of all requests' slots, the cheapest first: the share of its own prompt that a slot carries.

    Args:
        carried: up to the last of the slots that are priced, as of ``Holding``.
        low, high: places in ``carried`` between which they lie.
        slots: as many as lie between these.
    """
    return (carried[high] - carried[low]) / slots


class Offer:
    """The slots of a view, the cheapest first, in parts of one price."""

    def __init__(self, view: Holding) -> None:
        self._view = view
        self._points = view.points
        self.left = view.slots

    def part(self) -> tuple[float, int]:
        """Its price, and how many slots are left without it; no part can be had for nothing."""
        view, points = self._view, self._points
        if self.left == view.least:
            return inf, view.least
        # The last point below.
        low = bisect_left(points, self.left) - 1
        if view.carried is None:
            # It gives too, and last.
            return inf, points[low]
        return price(view.carried, low, low + 1, points[low + 1] - points[low]), points[low]


def give_back(views: Sequence[Holding], short: int) -> list[int]:
    """How many slots each view keeps, so that the others make up for ``short``, or for all that there are.

    What is lost of all prompts' contributions, each counted as one, is as little as it can be. Of equal parts
    those of earlier views go first.
    """
    offers = [Offer(view) for view in views]
    surplus = [view.slots - view.least for view in views]
    short = min(sum(surplus), max(short, AHEAD * sum(map(bool, surplus))))
    queue = [(*offer.part(), i) for i, offer in enumerate(offers) if surplus[i]]
    heapify(queue)
    while short > 0:
        _, low, i = queue[0]
        offer = offers[i]
        given = min(short, offer.left - low)
        offer.left -= given
        short -= given
        heapreplace(queue, (*offer.part(), i))
    return [offer.left for offer in offers]
