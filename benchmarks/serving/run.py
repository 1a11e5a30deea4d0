"""Runs workloads on servers that are up, one server at a time, and records what they measure."""

import dataclasses
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests
from rich.progress import Progress, TaskID

from benchmarks.harness.client import ClientError
from benchmarks.harness.provenance import origin
from benchmarks.serving.client import Client, Reply, WorkloadError
from benchmarks.serving.figures import figures, median_of, running_now
from benchmarks.serving.meter import Meter
from benchmarks.serving.profile import HOW, TraceError, summarise
from benchmarks.serving.record import STANDS_FOR, Record, dumps
from benchmarks.serving.servers import Machine, Service
from benchmarks.serving.workloads import ENOUGH, LAPROX, STOCK, WARM_TOKENS, Script, Workload

# The first prefill on a fresh machine compiles for more than a minute.
WARM_SECONDS = 300
START_SECONDS = 90


class Runner:
    """
    Attributes:
        failures: one line for each run that is not in the record because something was wrong.
    """

    def __init__(self, record: Record, machine: Machine, progress: Progress, path: Path | None) -> None:
        self.record = record
        self.failures: list[str] = []
        self._machine = machine
        self._progress = progress
        self._profile_path = profile_path(path) if path is not None else None
        self._profiles: dict[str, Any] = {}

    def say(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False)

    def fail(self, text: str) -> None:
        self.failures.append(text)
        self.say(f"failed: {text.splitlines()[0]}")

    def announce(self, chosen: Sequence[Workload], servers: Sequence[str]) -> None:
        where = "" if self._machine.gpu else " on a CPU"
        total = 0
        for row in chosen:
            times = dict(zip((STOCK, LAPROX), row.seconds, strict=True))
            parts = [(name, times[name]) for name in servers if name in row.servers]
            total += sum(seconds for _, seconds in parts)
            self.say(f"{row.name}: {row.what}; " + ", ".join(f"{name} about {s} s" for name, s in parts))
        self.say(f"about {total} s in all{where}, and {START_SECONDS} s for every start of a server")

    def run_all(self, rows: Sequence[Workload], services: Sequence[Service]) -> None:
        for pool in {row.pool for row in rows}:
            for service in services:
                neighbour = "idle, on the same GPU" if len(services) > 1 else None
                facts = {"slots": service.slots, "neighbour": neighbour, "settings": service.settings}
                self.record.put_server(pool, service.name, facts)
        for row in rows:
            if row.profile and not self._machine.gpu:
                self.say(f"{row.name}: left out, there are no kernels to trace without a GPU")
                continue
            live = [service for service in services if service.name in row.servers]
            results: dict[str, list[dict[str, Any]]] = {service.name: [] for service in live}
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
                            median = median_of(results[service.name])
                            self.record.put(row, service.name, median, service.backend)
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
        expected = self._machine.slots(row.pool)
        right = service.slots == expected if expected else service.slots != self._machine.slots("fixed")
        if not right:
            wanted = f"{expected} slots" if expected else "all that the GPU has room for"
            raise WorkloadError(f"needs a pool of {wanted}, and the server has {service.slots} slots")
        if row.name in STANDS_FOR:
            row = dataclasses.replace(row, requests=self._stock_peak(STANDS_FOR[row.name]))
            self._progress.update(task, total=row.total)
        warm, scripts = row.scripts(number)
        options = options_of(row, service)
        try:
            service.flush()
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
        return measured

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
                summary = summarise(Path(folder))
            except TraceError as error:
                self.say(f"{row.name} on {service.name}: no figures: {error}")
                return {}
        self._profiles[service.name] = summary
        if self._profile_path is not None:
            content = {**origin(), "how": HOW, "servers": self._profiles}
            self._profile_path.write_text(dumps(content))
        return {key: value for key, value in summary.items() if not isinstance(value, dict)}


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
        running = running_now(replies)
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


def profile_path(results: Path) -> Path:
    name = results.name
    return results.with_name(name.replace("serving", "profile") if "serving" in name else f"profile-{name}")
