"""Follows a run: how far it is, and whether an admission has gone far enough."""

import time

from rich.progress import Progress, TaskID

from benchmarks.serving.client import Client, Reply
from benchmarks.serving.figures import running_at


class Watch:
    """Shows how far a client is, and says when an admission has gone far enough."""

    # A prefill of 32K takes two seconds; nobody is admitted any more if none ends in this time.
    QUIET_SECONDS = 8.0

    def __init__(
        self, progress: Progress, task: TaskID, before: int, client: Client, goal: float | None
    ) -> None:
        """
        Args:
            before: replies of earlier rounds.
            goal: requests at once at which an admission may stop; None for other workloads.
        """
        self._progress, self._task, self._before = progress, task, before
        self._client, self._goal = client, goal
        self._started = self._changed = time.perf_counter()
        self._running = 0

    def tick(self, replies: list[Reply]) -> bool:
        now = time.perf_counter()
        running = running_at(replies, now)
        rate = self._client.tokens / (now - self._started)
        shown = f"{rate:,.0f} tokens/s, {running} running"
        if running > self._running:
            self._running, self._changed = running, now
        done = self._client.done if self._goal is None else self._running
        self._progress.update(self._task, completed=self._before + done, rate=shown)
        if self._goal is None:
            return False
        quiet = running > 0 and now - self._changed > self.QUIET_SECONDS
        return quiet or running >= self._goal
