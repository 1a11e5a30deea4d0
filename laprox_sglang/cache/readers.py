"""Requests that read views, and what these hold beyond what was promised."""

from laprox_sglang.ports import Req
from laprox_sglang.views.pressure import Holding, give_back
from laprox_sglang.views.state import view_of
from laprox_sglang.views.view import View


class Readers:
    """
    Attributes:
        surplus: slots that all views together can give back.
    """

    def __init__(self) -> None:
        # By the row of req_to_token: SGLang frees rows without naming the request.
        self._by_row: dict[int, Req] = {}
        self.surplus = 0

    def view_in(self, row: int) -> View | None:
        req = self._by_row.get(row)
        return None if req is None else view_of(req)

    def rows(self) -> list[int]:
        return list(self._by_row)

    def exchange(self, req: Req, before: View | None, view: View | None) -> None:
        """A request reads ``view`` where it read ``before``."""
        row = req.kv.req_pool_idx
        self.surplus += (view.surplus if view else 0) - (before.surplus if before else 0)
        if view is None:
            del self._by_row[row]
        else:
            self._by_row[row] = req

    def give_back(self, short: int) -> list[tuple[Req, View, int]]:
        """Whose views shrink to how many slots, so that ``short`` come free, or all that can."""
        can = [(req, view) for req in self._by_row.values() if (view := view_of(req)) and view.surplus]
        left = give_back([holding(view) for _, view in can], short)
        kept = zip(can, left, strict=True)
        return [(req, view, slots) for (req, view), slots in kept if slots < view.slots]


def holding(view: View) -> Holding:
    elastic = view.elastic
    assert elastic is not None
    carried = elastic.carried.tolist() if elastic.carried.there else None
    return Holding(elastic.least, view.slots, elastic.first, carried)
