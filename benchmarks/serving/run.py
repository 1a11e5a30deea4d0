"""Runs workloads on servers that are up, one server at a time, and records what they measure."""

from collections.abc import Sequence
from typing import Any

import requests
from rich.progress import Progress

from benchmarks.harness.client import ClientError
from benchmarks.serving.client import WorkloadError
from benchmarks.serving.figures import median_of
from benchmarks.serving.measure import Measure
from benchmarks.serving.record import Record
from benchmarks.serving.servers import Machine, Service
from benchmarks.serving.workload import Workload


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
        self._measure = Measure(record, machine, progress)
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


def abandon(service: Service) -> None:
    """Leaves a server idle after a run that failed, so that it does not spoil the next one."""
    try:
        service.abort(every=True)
        service.flush()
    except (requests.RequestException, ClientError):
        # The next run says so if the server is gone.
        return
