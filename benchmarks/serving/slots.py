"""Samples how many KV slots a server uses while a workload runs, by its own gauges."""

import re
import threading
import time
from types import TracebackType

import requests

# The page is made on the thread that streams the replies: reading it often would show in them.
PERIOD_SECONDS = 0.5
GPU, HOST = "sglang:num_used_tokens", "sglang:hicache_host_used_tokens"


class SlotSampler:
    """Samples in a thread while the context lasts.

    Attributes:
        samples: (time by ``time.perf_counter``, slots that running requests pin on the GPU, slots in use in
            host memory).
    """

    def __init__(self, url: str) -> None:
        self.samples: list[tuple[float, int, int]] = []
        self._url = url + "/metrics"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "SlotSampler":
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
                page = requests.get(self._url, timeout=30).text
            except requests.RequestException:
                continue
            if (used := gauge(page, GPU)) is not None:
                self.samples.append((time.perf_counter(), used, gauge(page, HOST) or 0))


def gauge(page: str, name: str) -> int | None:
    """A gauge of a metrics page; None until the scheduler has reported it."""
    found = re.search(rf"^{name}(?:\{{.*\}})? (\S+)$", page, re.MULTILINE)
    return None if found is None else int(float(found[1]))
