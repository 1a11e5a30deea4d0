"""Requests that are refused before there is one to schedule: counted where that happens."""

import collections
from collections.abc import Mapping
from typing import TYPE_CHECKING

from laprox_sglang.options.values import REFUSED

if TYPE_CHECKING:
    from prometheus_client import Counter


class Refused:
    """Refused requests by the kind of their fault, one of ``REFUSED``."""

    NAME = "laprox_refused_requests_total"
    HELP = "Requests that were answered with HTTP 400 for what they asked of LaProx, by the kind of fault."

    def __init__(self) -> None:
        self._counts: collections.Counter[str] = collections.Counter()
        self._metric: dict[str, Counter] | None = None

    def export(self, labels: Mapping[str, str]) -> None:
        """Adds the counts to ``/metrics``.

        Args:
            labels: of SGLang's metrics of this process.
        """
        # Imported late for the reason given in ``report/metrics.py``.
        import prometheus_client

        counter = prometheus_client.Counter(self.NAME, self.HELP, [*labels, "fault"])
        self._metric = {fault: counter.labels(**labels, fault=fault) for fault in REFUSED}

    def add(self, fault: str) -> None:
        self._counts[fault] += 1
        if self._metric is not None:
            self._metric[fault].inc()

    def to_dict(self) -> dict[str, int]:
        return dict(self._counts)
