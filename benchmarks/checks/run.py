"""Runs a plan: its servers side by side where there is a GPU, and says how far they are."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.checks.plan import Lane, Plan
from benchmarks.checks.rows import Row
from benchmarks.checks.servers import ON_GPU, Server, stop_all
from benchmarks.checks.soak import Soak
from benchmarks.harness.client import backend_of
from benchmarks.harness.server import ServerError

# Of (check, its rows, more than rows, the backend of every server).
Report = Callable[[str, list[Row], dict[str, Any], dict[str, str]], None]
SAY_SECONDS = 20.0


class Run:
    """
    Attributes:
        finished: (server, check) whose work is done.
    """

    def __init__(
        self, plan: Plan, flags: list[str], logs: Path, say: Callable[[str], None], report: Report
    ) -> None:
        """
        Args:
            say: gets a line for whoever watches.
            report: called for every check once all its servers are done with it.
        """
        self._plan, self._flags, self._logs, self._say = plan, flags, logs, say
        self._report, self._reporting = report, threading.Lock()
        self._backends: dict[str, str] = {}
        self._done: dict[str, int] = {}
        self._said = time.monotonic()
        self.finished: set[tuple[str, str]] = set()

    def __call__(self) -> list[str]:
        """Runs everything; returns what went wrong, one text for each server that failed."""
        lanes, failures = self._plan.lanes, []
        futures: dict[str, Future[None]] = {}
        for check in self._plan.checks:
            if isinstance(check, Soak):
                check.alone = lambda: all(done.done() for name, done in futures.items() if name != Soak.NAME)
        pool = ThreadPoolExecutor(max(1, len(lanes)) if ON_GPU else 1)
        try:
            futures |= {name: pool.submit(self._run_lane, name, lane) for name, lane in lanes.items()}
            for future in futures.values():
                try:
                    future.result()
                except ServerError as error:
                    failures.append(str(error))
        finally:
            stop_all()
            pool.shutdown(cancel_futures=True)
        return failures

    def _run_lane(self, name: str, lane: Lane) -> None:
        flags = ["--max-total-tokens", str(lane.slots), *lane.flags, *self._flags]
        with Server(name, flags, self._logs, lane.environment) as server:
            self._backends[name] = backend_of(server.info())
            self._say(f"server {name}: up after {server.start_seconds:.0f} s, {self._backends[name]}")
            for check, work in lane.work:
                started = time.monotonic()
                work(server, partial(self._advance, check))
                server.flush()
                self._finish(name, check)
                self._say(f"server {name}: {check} done after {time.monotonic() - started:.0f} s")

    def _advance(self, check: str) -> None:
        with self._reporting:
            self._done[check] = self._done.get(check, 0) + 1
            if time.monotonic() - self._said > SAY_SECONDS:
                self._said = time.monotonic()
                self._say("requests so far: " + ", ".join(f"{name} {n}" for name, n in self._done.items()))

    def _finish(self, name: str, check: str) -> None:
        with self._reporting:
            self.finished.add((name, check))
            if not self._unfinished(check):
                done = next(one for one in self._plan.checks if check == one.NAME)
                details = {"memory_samples": done.samples} if isinstance(done, Soak) else {}
                backends = {server: self._backends[server] for server in self._servers(check)}
                self._report(check, done.rows(), details, backends)

    def _servers(self, check: str) -> list[str]:
        return [name for name, lane in self._plan.lanes.items() if check in dict(lane.work)]

    def _unfinished(self, check: str) -> int:
        return sum((name, check) not in self.finished for name in self._servers(check))

    def rows(self) -> list[Row]:
        rows = []
        for check in self._plan.checks:
            missing = self._unfinished(check.NAME)
            rows += [Row(check.NAME, "servers that failed", missing, most=0)] if missing else check.rows()
        return rows
