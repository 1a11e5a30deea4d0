"""Runs workloads on servers that are up, one server at a time, and records what they measure."""

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
from benchmarks.serving.figures import figures, median_of
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


class Runner:
    """
    Attributes:
        failures: one line for each run that is not in the record because something was wrong.
    """

    def __init__(self, record: Record, machine: Machine, progress: Progress, again: bool) -> None:
        """
        Args:
            again: measure what the record holds of this commit already, too.
        """
        self.record = record
        self.failures: list[str] = []
        self._machine = machine
        self._progress = progress
        self._again = again

    @property
    def on_gpu(self) -> bool:
        return self._machine.card is not None

    def say(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def fail(self, text: str) -> None:
        self.failures.append(text)
        self.say(f"failed: {text.splitlines()[0]}")

    def missing(self, row: Workload, servers: Sequence[str], alternate: bool) -> list[str]:
        """Servers that a workload is to be measured on now.

        Args:
            alternate: the servers run beside each other; rounds that alternate are measured on all or none.
        """
        run = [server for server in servers if server in row.servers]
        lacking = [server for server in run if self._again or not self.record.holds(row.name, server)]
        return run if lacking and alternate and row.rounds > 1 else lacking

    def run_all(self, rows: Sequence[Workload], services: Sequence[Service], facts: dict[str, Any]) -> None:
        """
        Args:
            facts: for the record, about all servers.
        """
        beside = len(services) > 1
        for pool in {row.pool for row in rows}:
            for service in services:
                about = {"slots": service.slots, "neighbour": "idle, on the same GPU" if beside else None}
                self.record.put_server(pool, service.name, about | facts | {"settings": service.settings})
        for row in rows:
            if row.profile and not self.on_gpu:
                self.say(f"{row.name}: left out, there are no kernels to trace without a GPU")
                continue
            names = self.missing(row, [service.name for service in services], beside)
            self._run_rounds(row, [service for service in services if service.name in names])

    def _run_rounds(self, row: Workload, live: list[Service]) -> None:
        results: dict[str, list[dict[str, Any]]] = {service.name: [] for service in live}
        alternating = len(live) > 1
        tasks = {
            service.name: self._progress.add_task(
                f"{row.name}, {service.name}", start=False, total=row.total * row.rounds, rate=""
            )
            for service in live
        }
        for number in range(row.rounds):
            for service in list(live):
                task = tasks[service.name]
                self._progress.start_task(task)
                try:
                    results[service.name].append(self._measure(row, service, number, task))
                    if number == row.rounds - 1:
                        median = median_of(results[service.name]) | {"alternating": alternating}
                        self.record.put(row, service.name, median, service.backend)
                        self.say(f"{row.name} on {service.name}, {service.backend}: {brief(median)}")
                except WorkloadError as error:
                    self.fail(f"{row.name} on {service.name}: {error}")
                    live.remove(service)
                    abandon(service)
                if number == row.rounds - 1 or service not in live:
                    self._progress.stop_task(task)

    def _measure(self, row: Workload, service: Service, number: int, task: TaskID) -> dict[str, Any]:
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
        stock = self.record.figures(name, STOCK)
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


def brief(measured: dict[str, Any]) -> str:
    """A line for whoever watches."""
    shown = {
        "output_tok_s": "{:,.0f} tokens/s",
        "peak_concurrency": "{} requests at once",
        "ttft_p50": "first token after {:,.1f} ms",
        "seconds": "{:.0f} s a round",
        "syncs": "{} waits of the host",
    }
    return ", ".join(
        text.format(measured[key]) for key, text in shown.items() if measured.get(key) is not None
    )


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


def abandon(service: Service) -> None:
    """Leaves a server idle after a run that failed, so that it does not spoil the next one."""
    try:
        service.abort(every=True)
        service.flush()
    except (requests.RequestException, ClientError):
        # The next run says so if the server is gone.
        return
