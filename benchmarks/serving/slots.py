"""Samples how many KV slots a server uses while a workload runs, by its own gauges."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import requests

# The page is made on the thread that streams the replies: reading it often would show in them.
PERIOD_SECONDS = 0.5
GPU, HOST = "sglang:num_used_tokens", "sglang:hicache_host_used_tokens"
# (time by ``time.perf_counter``, slots that running requests pin on the GPU, slots in use in host memory).
Sample = tuple[float, int, int]


@contextmanager
def sampled(url: str) -> Iterator[list[Sample]]:
    """Samples in a thread while the context lasts."""
    samples: list[Sample] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(PERIOD_SECONDS):
            try:
                page = requests.get(f"{url}/metrics", timeout=30).text
            except requests.RequestException:
                continue
            if (used := gauge(page, GPU)) is not None:
                samples.append((time.perf_counter(), used, gauge(page, HOST) or 0))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def gauge(page: str, name: str) -> int | None:
    """A gauge of a metrics page; None until the scheduler has reported it."""
    found = re.search(rf"^{name}(?:\{{.*\}})? (\S+)$", page, re.MULTILINE)
    return None if found is None else int(float(found[1]))
