"""Runs rows and load points on a server that is up, and records what they measure."""

import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import requests

from benchmarks.harness.client import ClientError
from benchmarks.serving.client import Client, WorkloadError
from benchmarks.serving.figures import figures, median_of
from benchmarks.serving.load.workload import Session, Workload
from benchmarks.serving.open_loop import OpenLoop, measure_open_loop
from benchmarks.serving.record import Record
from benchmarks.serving.servers import Service
from benchmarks.serving.slots import sampled
from benchmarks.serving.tally import Tally

# The first prefill on a fresh machine compiles for more than a minute.
WARM_SECONDS = 300
# Sessions begin in their middle half, as AgentX has it, and so many replies of each lane are not measured;
# AgentX takes ten. The warm-up ends with this share of the time, whoever has replied by then.
MIDDLE, WARM_REPLIES, WARM_SHARE = (0.25, 0.75), 2, 0.4
SAY_SECONDS = 20.0
# Of the line that a point prints; milliseconds, and rates a second.
SHOWN = (
    *("output_tok_s", "ttft_p50", "ttft_p95", "itl_p50", "itl_p99", "interactivity_p90"),
    *("computed_again", "slots_mean", "seconds"),
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class LoadPoint:
    """One point of a curve: sessions at a fixed concurrency, or at arrival times.

    Attributes:
        name, what: of the row in the record.
        load: ``curve`` that it is of, ``at`` where on it, in ``unit``.
        sessions: to draw from.
        agents: sessions at once; 0 where ``rate`` is given.
        rate: sessions a second, at random times; a trace's own times, if it is 0, times ``stretch``.
    """

    name: str
    what: str
    load: dict[str, Any]
    sessions: Sequence[Session]
    agents: int = 0
    rate: float = 0.0
    stretch: float = 1.0


Row = LoadPoint | OpenLoop | Workload


def measure_point(point: LoadPoint, service: Service, minutes: float, part: int, say: Say) -> Tally:
    """Warms up, measures for the rest of the time, and drops what is under way.

    Args:
        part: another one draws other sessions, in another order.

    Raises:
        WorkloadError: the server does not answer any more.
    """
    source = random.Random(f"{point.name} {part}")
    client = Client(service.url, named=service.names_sessions)
    began = time.perf_counter()
    until = began + 60 * minutes
    measured_from: list[float] = []
    said = began

    def enough() -> bool:
        nonlocal said
        now = time.perf_counter()
        done = sum(reply.done for reply in client.replies)
        if not measured_from and (
            (point.agents and done >= WARM_REPLIES * point.agents)
            or now > began + WARM_SHARE * (until - began)
        ):
            measured_from.append(now)
            say(f"{point.name} on {service.name}: warm after {now - began:.0f} s, {done} replies")
        if now - said > SAY_SECONDS:
            said = now
            waiting = sum(not reply.chunks and not reply.error for reply in client.replies)
            say(f"{point.name} on {service.name}: {now - began:.0f} s, {done} replies, {waiting} wait")
        return now > until

    with sampled(service.url) as samples:
        try:
            if point.agents:
                drawn = (source.choice(point.sessions) for _ in itertools.count())
                unique = (renamed(session, f"{part} {i}") for i, session in enumerate(drawn))
                first = [next(unique) for _ in range(point.agents)]
                starts = [round(source.uniform(*MIDDLE) * len(session.steps)) for session in first]
                client.keep_going(itertools.chain(first, unique), starts, enough)
            else:
                client.arrive(arrivals(point, source, 60 * minutes, part), enough)
        finally:
            leave_idle(service)
    end = min(time.perf_counter(), until)
    return Tally.of(client.replies, samples, measured_from[0] if measured_from else end, end)


def arrivals(
    point: LoadPoint, source: random.Random, seconds: float, part: int
) -> list[tuple[float, Session]]:
    """(second, session) of all that come in a time."""
    if not point.rate:
        # Other parts go on where the one before stopped.
        skipped = part * seconds / point.stretch
        starts = [(session.start - skipped, session) for session in point.sessions]
        return [
            (start * point.stretch, session)
            for start, session in starts
            if 0 <= start * point.stretch < seconds
        ]
    found: list[tuple[float, Session]] = []
    second = 0.0
    while (second := second + source.expovariate(point.rate)) < seconds:
        found.append((second, renamed(source.choice(point.sessions), f"{part} {len(found)}")))
    return found


def renamed(session: Session, name: str) -> Session:
    """The same lengths with other ids: what is drawn twice must not find itself in the cache."""
    return Session(f"{session.seed} {name}", session.steps, session.head, session.start)


def run(row: Row, service: Service, record: Record, minutes: float, part: int, say: Say) -> dict[str, Any]:
    """Figures of a row, or of a point with all its parts, or ``failed``; they are in the record."""
    try:
        if isinstance(row, Workload):
            measured = measure_row(row, service, minutes)
            record.put(row, service.name, measured, service.backend)
            return measured
        service.flush()
        if isinstance(row, LoadPoint):
            tally = measure_point(row, service, minutes, part, say)
        else:
            tally = measure_open_loop(row, service, minutes, part, say)
        if not tally.requests and tally.failed:
            raise WorkloadError(f"all {tally.failed} requests failed")
        return record.put_part(row, service.name, part, tally, service.backend)
    except (WorkloadError, ClientError, requests.RequestException) as error:
        leave_idle(service)
        record.put_failure(row, service.name, str(error), service.backend)
        return {"failed": str(error)}


def measure_row(row: Workload, service: Service, minutes: float) -> dict[str, Any]:
    """Median of its rounds."""
    deadline = time.monotonic() + 60 * minutes
    numbers = range(row.rounds)
    return median_of([measure_round(row, service, i, deadline - time.monotonic()) for i in numbers])


def measure_round(row: Workload, service: Service, number: int, limit: float) -> dict[str, Any]:
    """One round: the cache emptied, what warms it, then the measured sessions.

    Raises:
        WorkloadError: too slow, wrong lengths, or not the share of pruned requests that the row means.
    """
    warm, sessions = row.sessions(number)
    before = service.totals()
    options = {"keep_prefix": row.keep} if row.keep and before is not None else None
    service.flush()
    if warm:
        Client(service.url, options, service.names_sessions).run(warm, WARM_SECONDS)
        if not row.groups:
            service.flush()
    client = Client(service.url, options, service.names_sessions)
    before = service.totals()
    with sampled(service.url) as samples:
        client.run(sessions, limit, row.clients)
    after = service.totals()
    measured = figures(client.replies, samples)
    if before is not None and after is not None:
        measured |= pruning(row, before, after)
    return measured


def pruning(row: Workload, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What LaProx did between two of its totals.

    Raises:
        WorkloadError: it did not prune the share of the requests that the row means.
    """
    ended = after["requests"] - before["requests"]
    pruned = after["pruned"] - before["pruned"]
    share = pruned / ended if ended else 0.0
    if share != row.pruned:
        raise WorkloadError(f"{pruned} of {ended} requests were pruned, not {row.pruned:.0%}")
    prunes = after["prunes"] - before["prunes"]
    # Of one rank, where there are several.
    stage_ms = {
        stage: 1000 * (seconds - before["stage_seconds"][stage]) / prunes
        for stage, seconds in after["stage_seconds"].items()
        if prunes
    }
    retracted = after["released"].get("retracted", 0) - before["released"].get("retracted", 0)
    counted = {name: after[name] - before[name] for name in ("slots_freed", "shrinks", "shrunk_slots")}
    return {"pruned_share": share, "retracted": retracted, "stage_ms": stage_ms, **counted}


def leave_idle(service: Service) -> None:
    """Ends what is under way, so that it does not spoil the next run, which says so if the server is gone."""
    try:
        service.abort(every=True)
        service.flush()
    except (requests.RequestException, ClientError):
        return


def brief(measured: dict[str, Any]) -> str:
    """A line for whoever watches."""
    if "failed" in measured:
        return f"FAILED: {measured['failed']}"
    told = [f"{key} {measured[key]:,}" for key in SHOWN if measured.get(key) is not None]
    if level := measured.get("goodput_agents"):
        told.append(f"goodput {level['output_tok_s']:,}{'' if level['met'] else ', level missed'}")
    return ", ".join(told + [f"INVALID ({fault})" for fault in measured.get("invalid", ())])
