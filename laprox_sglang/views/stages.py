"""What the stages of a view's making take, measured where they run."""

import time
from collections import deque
from typing import Any

import torch

STAGES = ("score", "select", "pack")
# A stage, and the events recorded before and after it.
Lap = tuple[str, torch.cuda.Event, torch.cuda.Event]


class Stages:
    """Seconds of each stage; on a GPU by the clock of the stream it runs on, for which nobody waits.

    Time that the stream waits for the host within a stage counts as well.
    """

    def __init__(self, cuda: bool) -> None:
        self._cuda = cuda
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._laps: deque[Lap] = deque()
        self._last: Any = None

    def start(self) -> None:
        self._collect()
        self._last = self._now()

    def done(self, stage: str) -> None:
        """What was enqueued since ``start``, or since the last stage, was ``stage``."""
        before, self._last = self._last, self._now()
        if self._cuda:
            self._laps.append((stage, before, self._last))
        else:
            self._seconds[stage] += self._last - before

    def seconds(self) -> dict[str, float]:
        """By stage, so far; a GPU's stages count once they are over."""
        self._collect()
        return dict(self._seconds)

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _collect(self) -> None:
        while self._laps and self._laps[0][2].query():
            stage, before, behind = self._laps.popleft()
            self._seconds[stage] += before.elapsed_time(behind) / 1e3
