"""Measures one round of a workload on a server that is up."""

import dataclasses
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests
from rich.progress import Progress, TaskID

from benchmarks.harness.client import ClientError
from benchmarks.serving.client import Client, WorkloadError
from benchmarks.serving.figures import figures
from benchmarks.serving.meter import Meter
from benchmarks.serving.profile import TraceError, summarise
from benchmarks.serving.record import Record
from benchmarks.serving.servers import Machine, Service
from benchmarks.serving.skew import kept_by_head, skew, spread
from benchmarks.serving.watch import Watch
from benchmarks.serving.workload import STOCK, WARM_TOKENS, Script, Workload
from benchmarks.serving.workloads import ENOUGH

# The first prefill on a fresh machine compiles for more than a minute.
WARM_SECONDS = 300


class Measure:
    """What a round needs of earlier ones is in the record."""

    def __init__(self, record: Record, machine: Machine, progress: Progress) -> None:
        self._record = record
        self._machine = machine
        self._progress = progress

    def __call__(self, row: Workload, service: Service, number: int, task: TaskID) -> dict[str, Any]:
        """One round: the cache emptied, what warms it, then the measured requests.

        Raises:
            WorkloadError: too slow, wrong lengths, or not the share of pruned requests that the row means.
        """
        self._check_pool(row, service)
        if row.at_peak:
            row = dataclasses.replace(row, requests=self._stock_peak(row.stock_of))
            self._progress.update(task, total=row.total)
        warm, scripts = row.scripts(number)
        options = options_of(row, service)
        try:
            service.flush()
            skewed = self._skew(service, scripts[0].prompt) if row.skew else {}
            if warm:
                tokens = min(WARM_TOKENS, row.output)
                Client(service.url, tokens, options).run(warm, WARM_SECONDS)
                if not row.groups:
                    service.flush()
            client = Client(service.url, row.output, options)
            if row.profile:
                return self._profile(row, service, client, scripts)
            before = service.totals()
            watch = Watch(self._progress, task, row.total * number, client, self._goal(row, service))
            with Meter(service.url) as meter:
                client.run(scripts, row.limit, row.clients, watch.tick)
            if row.admission:
                service.abort(every=True)
                service.flush()
            after = service.totals()
        except requests.RequestException as error:
            raise WorkloadError(f"the server does not answer: {error!r}") from error
        except ClientError as error:
            raise WorkloadError(str(error)) from error
        measured = figures(client.replies, meter.samples, complete=not row.admission)
        if before is not None and after is not None:
            measured |= pruning(row, before, after)
        return measured | skewed

    def _check_pool(self, row: Workload, service: Service) -> None:
        expected = self._machine.slots(row.pool)
        right = service.slots == expected if expected else service.slots != self._machine.slots("fixed")
        if not right:
            wanted = f"{expected} slots" if expected else "all that the GPU has room for"
            raise WorkloadError(f"needs a pool of {wanted}, and the server has {service.slots} slots")

    def _skew(self, service: Service, prompt: list[int]) -> dict[str, Any]:
        """Makes the heads uneven; how many cells each keeps of a prompt, before and then."""
        even = kept_by_head(service, prompt)
        skew(service, service.model, layers=len(even))
        uneven = kept_by_head(service, prompt)
        service.flush()
        return {"kept_by_head": spread(uneven), "kept_by_head_even": spread(even)}

    def _goal(self, row: Workload, service: Service) -> float | None:
        """Requests at once that are enough; None where all requests are to be answered."""
        if not row.admission:
            return None
        return math.inf if service.name == STOCK else math.ceil(ENOUGH * self._stock_peak(row.name))

    def _stock_peak(self, name: str) -> int:
        stock = self._record.figures(name, STOCK)
        if stock is None:
            raise WorkloadError(f"needs the figures of {name} on stock: run that first, into the same file")
        return int(stock["peak_concurrency"])

    def _profile(
        self, row: Workload, service: Service, client: Client, scripts: Sequence[Script]
    ) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="laprox-trace-") as folder:
            service.start_profile(Path(folder))
            try:
                client.run(scripts, row.limit)
            finally:
                service.stop_profile()
            try:
                return summarise(Path(folder))
            except TraceError as error:
                raise WorkloadError(f"no figures: {error}") from error


def options_of(row: Workload, service: Service) -> dict[str, Any] | None:
    """Stock knows no options."""
    return {"keep_prefix": row.keep} if row.keep and service.totals() is not None else None


def pruning(row: Workload, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What LaProx did between two of its totals.

    Raises:
        WorkloadError: it did not prune the share of the requests that the workload means.
    """
    aborted = after["unpruned"].get("aborted", 0) - before["unpruned"].get("aborted", 0)
    ended = after["requests"] - before["requests"] - aborted
    pruned = after["pruned"] - before["pruned"]
    share = pruned / ended if ended else 0.0
    if share != row.pruned:
        raise WorkloadError(f"{pruned} of {ended} requests were pruned, not {row.pruned:.0%}")
    return {"pruned_share": share, "slots_freed": after["slots_freed"] - before["slots_freed"]}
