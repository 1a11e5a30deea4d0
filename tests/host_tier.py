"""Copies to host memory and back that take their time, for a machine on which none is ever under way.

Each is made as late as a GPU might make it: a write when its end is noticed, a load when the forward pass
that waits for it begins. What changed in the meantime is copied, and the stamps of the slots tell.
"""

from collections.abc import Callable

from sglang.srt.mem_cache.l2_transfer import L2Transfer, L2TransferEngine, TransferCompletion


class LateEvent:
    """End of a copy, which somebody waits for or asks about."""

    def __init__(self, copy: Callable[[], object]) -> None:
        self._copy: Callable[[], object] | None = copy
        self.noticed = False

    def copy(self) -> None:
        """The copy itself, if it was not made yet; nobody has noticed."""
        copy, self._copy = self._copy, None
        if copy is not None:
            copy()

    def query(self) -> bool:
        return self.noticed

    def synchronize(self) -> None:
        self.copy()
        self.noticed = True


class LateTransfers(L2TransferEngine):
    """
    Attributes:
        writes, loads: those that have not ended, in order.
        written, loaded: slots so far.
    """

    def __init__(self) -> None:
        super().__init__("kernel")
        self.writes: list[LateEvent] = []
        self.loads: list[LateEvent] = []
        self.written = self.loaded = 0

    def submit_device_to_host(self, transfers: list[L2Transfer]) -> TransferCompletion:
        event = LateEvent(lambda: super(LateTransfers, self).submit_device_to_host(transfers))
        self.writes.append(event)
        self.written += sum(len(transfer.host_indices) for transfer in transfers)
        return TransferCompletion(event, event, False)

    def submit_host_to_device(self, transfers, *, start_event=None, on_layer_done=None, **given):
        def copy() -> None:
            super(LateTransfers, self).submit_host_to_device(transfers, **given)

        event = LateEvent(copy)
        self.loads.append(event)
        self.loaded += sum(len(transfer.host_indices) for transfer in transfers)
        return TransferCompletion(event, event, False)

    def copy_loads(self) -> None:
        """A forward pass begins, whose layers wait for what they read."""
        for event in self.loads:
            event.copy()

    def end(self, count: int) -> None:
        """So many writes, and as many loads, have ended: on a GPU each stream keeps its order."""
        for under_way in (self.writes, self.loads):
            for event in under_way[:count]:
                event.synchronize()
            under_way[:] = [event for event in under_way if not event.noticed]
