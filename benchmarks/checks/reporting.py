"""What it costs to report: events that nobody reads, metrics, and facts with kept positions.

    python -m benchmarks.checks.reporting --json benchmarks/results/reporting.json

Two servers answer the same requests in turns, one of them with ``--enable-metrics`` and ``--laprox-events``
and a subscriber that never reads. On a machine with other work the pairs scatter: the median counts.
"""

import argparse
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import prometheus_client
import torch
import zmq

from benchmarks.checks.record import Record, RecordError
from benchmarks.checks.rows import Row, show
from benchmarks.checks.servers import Server
from laprox_sglang.options.server import SINK_TOKENS, WINDOW
from laprox_sglang.report.events import Pruned, Publisher
from laprox_sglang.report.facts import request_facts
from laprox_sglang.report.metrics import Metrics
from laprox_sglang.report.reporter import Reporter
from laprox_sglang.report.totals import Pool
from laprox_sglang.views.plan import Plan
from laprox_sglang.views.state import Outcome
from laprox_sglang.views.view import View
from laprox_tools.needle import Task

NAME, LEAST_RATIO = "reporting", 0.97
LAYERS, HEADS, BUDGET = 8, 2, 0.2
REQUESTS, LENGTH, TOKENS, AT_ONCE = 32, 800, 64, 16


def microseconds(times: int, act: Callable[[], Any]) -> float:
    """Of one ``act``, the median of five rounds."""
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(times):
            act()
        rounds.append((time.perf_counter() - start) / times * 1e6)
    return statistics.median(rounds)


def deaf(context: "zmq.Context[Any]", endpoint: str) -> "zmq.Socket[bytes]":
    """A subscriber that never reads, as long as it is kept."""
    subscriber = context.socket(zmq.SUB)
    subscriber.rcvhwm = 1
    subscriber.subscribe(b"")
    subscriber.connect(endpoint)
    return subscriber


def cost_of_an_event(folder: Path) -> list[Row]:
    endpoint, context = f"ipc://{folder}/cost", zmq.Context()
    events = Publisher(endpoint)

    def publish() -> None:
        events.publish(Pruned, "r" * 32, tokens=32_768, dense=0, slots=1639, freed=31_129)

    nobody = microseconds(10_000, publish)
    subscriber = deaf(context, endpoint)
    time.sleep(0.5)
    full = microseconds(10_000, publish)
    rows = [
        Row(NAME, "an event, nobody listens", nobody, "µs"),
        Row(NAME, "an event, a subscriber never reads", full, "µs"),
        Row(NAME, "times that its queue was found full", events.overflows, least=1),
    ]
    subscriber.close(linger=0)
    events.close()
    return rows


def cost_of_metrics() -> list[Row]:
    metrics, pool = Metrics({"model_name": "m"}, Reporter(), 8192, LAYERS), Pool(1000, 500, 500)
    stages = dict.fromkeys(("score", "select", "pack"), 0.0)
    metrics.publish(pool, stages)
    metric = prometheus_client.REGISTRY
    assert metric.get_sample_value("laprox_slots", {"model_name": "m", "state": "available"}) == 500
    return [
        Row(NAME, "metrics, nothing new", microseconds(1000, lambda: metrics.publish(pool, stages)), "µs")
    ]


def cost_of_positions(tokens: int) -> list[Row]:
    """What the scheduler's thread does for a reply with kept positions, its pickle included."""
    cells, slots = LAYERS * HEADS, int(tokens * BUDGET)
    plan = Plan(0, tokens, slots, SINK_TOKENS, WINDOW, None)
    cu_cells = torch.arange(cells + 1) * slots
    positions = torch.randint(0, tokens, (slots * cells,), dtype=torch.int32)
    outcome = Outcome(
        plan, View.of(plan, torch.arange(slots), LAYERS, cu_cells, torch.tensor(slots), positions)
    )

    def facts(kept: bool) -> float:
        return microseconds(20, lambda: pickle.dumps([request_facts(outcome, tokens, 0, kept)])) / 1e3

    what = f"{tokens:,} tokens, {LAYERS} layers of {HEADS} heads"
    return [
        Row(NAME, f"facts: {what}", facts(False), "ms"),
        Row(NAME, f"facts with kept positions: {what}", facts(True), "ms"),
    ]


def throughput(server: Server, seed: int) -> tuple[float, list[Any]]:
    """Output tokens per second, and the replies."""
    samples = Task(seed).batch(REQUESTS, LENGTH)
    server.flush()
    start = time.monotonic()
    replies = server.generate_all([{"ids": s.prompt_ids(), "tokens": TOKENS} for s in samples], AT_ONCE)
    return REQUESTS * TOKENS / (time.monotonic() - start), replies


def ratios(pairs: int, folder: Path) -> tuple[list[Row], dict[str, Any], dict[str, str]]:
    endpoint = f"ipc://{folder}/events"
    flags = ["--enable-laprox", "--laprox-budget", str(BUDGET), "--max-total-tokens", "32768"]
    reporting = ["--enable-metrics", "--laprox-events", endpoint]
    context, measured, equal = zmq.Context(), [], 0
    with (
        Server("silent", flags, folder, {}) as silent,
        Server("reporting", [*flags, *reporting], folder, {}) as loud,
    ):
        subscriber = deaf(context, endpoint)
        for number in range(-1, pairs):
            order = (silent, loud) if number % 2 else (loud, silent)
            done = {server.name: throughput(server, number + 2) for server in order}
            if number >= 0:
                # The first pair warms both up.
                measured.append({name: round(speed, 1) for name, (speed, _) in done.items()})
                answers = zip(done["silent"][1], done["reporting"][1], strict=True)
                equal += sum(a["output_ids"] == b["output_ids"] for a, b in answers)
            print(f"pair {number + 1} of {pairs}: { ({n: round(s, 1) for n, (s, _) in done.items()}) }")
        totals = SimpleNamespace(**loud.laprox())
        backends = {server.name: server.info()["attention_backend"] for server in (silent, loud)}
    subscriber.close(linger=0)
    ratio = statistics.median(pair["reporting"] / pair["silent"] for pair in measured)
    rows = [
        Row(NAME, "requests pruned", 100 * totals.pruned_share, "%", least=50),
        Row(NAME, "events published", totals.events["sent"], least=2 * REQUESTS * pairs),
        Row(NAME, f"answers that are equal, of {REQUESTS * pairs}", 100 * equal / (REQUESTS * pairs), "%"),
        Row(NAME, f"throughput, reporting over silent, median of {pairs} pairs", ratio, least=LEAST_RATIO),
    ]
    return rows, {"tokens per second": measured}, backends


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checks.reporting", description=__doc__)
    parser.add_argument("--pairs", type=int, default=7, help="runs of each server; 0 for the costs alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    arguments = parser.parse_args()
    try:
        record = Record(arguments.json, quick=False)
    except RecordError as error:
        parser.error(f"--json: {error}")
    folder = Path(tempfile.mkdtemp(prefix="laprox-reporting-"))
    rows = [*cost_of_an_event(folder), *cost_of_metrics(), *cost_of_positions(16_384)]
    details: dict[str, Any] = {}
    backends: dict[str, str] = {}
    if arguments.pairs:
        more, details, backends = ratios(arguments.pairs, folder)
        rows += more
    show(rows)
    record.put(NAME, rows, details, backends)
    return 1 if any(row.met is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
