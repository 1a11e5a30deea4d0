"""What the stages of a view's making take, measured where they run."""

import time
from collections import deque

import torch

STAGES = ("score", "select", "pack", "shrink")


class Mark:
    """A point in time: of the current stream on a GPU, of the host elsewhere."""

    def __init__(self, cuda: bool) -> None:
        self._event = torch.cuda.Event(enable_timing=True) if cuda else None
        self._host = time.perf_counter()
        if self._event is not None:
            self._event.record()

    @property
    def passed(self) -> bool:
        return self._event is None or self._event.query()

    def seconds_until(self, later: "Mark") -> float:
        """Both must have passed."""
        if self._event is None or later._event is None:
            return later._host - self._host
        milliseconds: float = self._event.elapsed_time(later._event)
        return milliseconds / 1e3


class Stages:
    """Seconds of each stage; on a GPU by the clock of the stream it runs on, for which nobody waits.

    Time that the stream waits for the host within a stage counts as well.
    """

    def __init__(self, cuda: bool) -> None:
        self._cuda = cuda
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._laps: deque[tuple[str, Mark, Mark]] = deque()
        self._last: Mark | None = None

    def start(self) -> None:
        self._collect()
        self._last = Mark(self._cuda)

    def done(self, stage: str) -> None:
        """What was enqueued since ``start``, or since the last stage, was ``stage``."""
        before, self._last = self._last, Mark(self._cuda)
        assert before is not None, "no stage has been started"
        self._laps.append((stage, before, self._last))

    def seconds(self) -> dict[str, float]:
        """By stage, so far; a GPU's stages count once they are over."""
        self._collect()
        return dict(self._seconds)

    def _collect(self) -> None:
        while self._laps and self._laps[0][2].passed:
            stage, before, behind = self._laps.popleft()
            self._seconds[stage] += before.seconds_until(behind)
