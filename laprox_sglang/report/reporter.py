"""What happens to requests, told once: counted, and published to whoever listens."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from laprox_sglang.ports import Req
from laprox_sglang.report.events import Event, Pruned, Publisher, Released, Retracted, Shrunk
from laprox_sglang.report.facts import Cached, Facts
from laprox_sglang.report.refused import Refused
from laprox_sglang.report.totals import Totals
from laprox_sglang.views.plan import Plan
from laprox_sglang.views.state import RequestState, state_of
from laprox_sglang.views.view import View

if TYPE_CHECKING:
    from laprox_sglang.report.metrics import Metrics


class Reporter:
    """The reporter of one scheduler; its methods are named by the life of a request.

    Attributes:
        events: where events go; None without ``--laprox-events``.
        metrics: what ``/metrics`` says; None without ``--enable-metrics``.
        untested: flags of this server that were not tried with LaProx.
        refused: requests that no tokenizer manager had checked.
    """

    def __init__(self) -> None:
        self.totals = Totals()
        self.events: Publisher | None = None
        self.metrics: Metrics | None = None
        self.untested: tuple[str, ...] = ()
        self.refused = Refused()

    def exchanged(self, req: Req, before: View | None, view: View | None) -> None:
        """A request reads ``view`` where it read ``before``."""
        self.totals.exchange(before, view)
        if before is not None and view is not None:
            self._publish(Shrunk, req, slots=view.slots, freed=before.slots - view.slots)

    def pruned(self, req: Req, plan: Plan, view: View, freed: int, staged: bool) -> None:
        self.totals.add_prune(freed, staged)
        self._publish(Pruned, req, tokens=plan.end, dense=plan.start, slots=view.slots, freed=freed)

    def released(self, req: Req) -> None:
        """Its slots are being given back."""
        state = state_of(req)
        held = state.held
        slots = state.view.slots if state.view else 0
        if not req.finished():
            self.totals.add_released("retracted")
            self._publish(Retracted, req, slots=slots, held=held)
            return
        how = how_ended(req, state.computed)
        self.totals.add_released(how)
        cached, host, storage = Cached.of(req)
        self._publish(
            Released,
            req,
            how=how,
            reason=reason_of(state),
            slots=slots,
            held=held,
            cached=cached,
            cached_from_host=host,
            cached_from_storage=storage,
        )

    def finished(self, said: Facts, held: int) -> None:
        """A request has ended whose prefill was completed, with these facts."""
        self.totals.add_finished(said, held)

    def _publish(self, kind: Callable[..., Event], req: Req, **said: object) -> None:
        if self.events is not None:
            self.events.publish(kind, req.rid, **said)

    def to_dict(self) -> dict[str, object]:
        events = self.events
        return self.totals.to_dict() | {
            "events": events
            and {"endpoint": events.endpoint, "sent": events.sent, "overflows": events.overflows},
            "untested": list(self.untested),
            "refused": self.refused.to_dict(),
        }


def how_ended(req: Req, computed: bool) -> str:
    if req.finished_reason.to_json()["type"] != "abort":
        return "finished"
    return "aborted_running" if computed else "aborted_mid_prefill"


def reason_of(state: RequestState) -> str | None:
    return state.outcome.plan.reason if state.outcome else None
