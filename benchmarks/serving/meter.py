"""Watches how many KV slots a server uses while a workload runs, by its own gauge."""

import re
import threading
import time
from types import TracebackType

import requests

# The page is made on the thread that streams the replies: reading it often would show in them.
PERIOD_SECONDS = 0.5
LINE = re.compile(r"^sglang:num_used_tokens(?:\{.*\})? (\S+)$", re.MULTILINE)


class Meter:
    """Samples in a thread while the context lasts.

    Attributes:
        samples: (time by ``time.perf_counter``, KV slots in use).
    """

    def __init__(self, url: str) -> None:
        self.samples: list[tuple[float, int]] = []
        self._url = url + "/metrics"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Meter":
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
            if (used := slots_used(text)) is not None:
                self.samples.append((time.perf_counter(), used))


def slots_used(page: str) -> int | None:
    """KV slots in use by a metrics page; None until the scheduler has reported."""
    found = LINE.search(page)
    return None if found is None else int(float(found[1]))
