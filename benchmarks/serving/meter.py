"""Watches a server's own gauges while a workload runs."""

import re
import threading
import time
from types import TracebackType

import requests

# The page is made on the thread that streams the replies: reading it often would show in them.
PERIOD_SECONDS = 0.5
GAUGES = ("num_used_tokens", "num_running_reqs", "num_queue_reqs")
LINE = re.compile(rf"^sglang:({'|'.join(GAUGES)})(?:\{{.*\}})? (\S+)$", re.MULTILINE)


class Meter:
    """Samples in a thread while the context lasts.

    Attributes:
        samples: (seconds since the start, KV slots in use, requests running, requests waiting).
    """

    def __init__(self, url: str) -> None:
        self.samples: list[tuple[float, int, int, int]] = []
        self._url = url + "/metrics"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Meter":
        self._started = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(PERIOD_SECONDS):
            try:
                text = requests.get(self._url, timeout=30).text
            except requests.RequestException:
                continue
            if (values := parse_gauges(text)) is not None:
                self.samples.append((time.perf_counter() - self._started, *values))


def parse_gauges(text: str) -> tuple[int, int, int] | None:
    """KV slots in use, requests running and waiting; None until the scheduler has reported."""
    found = {name: int(float(value)) for name, value in LINE.findall(text)}
    if len(found) < len(GAUGES):
        return None
    used, running, waiting = (found[name] for name in GAUGES)
    return used, running, waiting
