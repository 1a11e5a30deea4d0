"""From replies and samples to the figures of a row, and from two servers' figures to their ratio."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.serving.client import Reply

Sample = tuple[float, int, int, int]

# Figures of which a ratio LaProx / stock says something.
COMPARED = (
    *("output_tok_s", "requests_s", "peak_concurrency", "ttft_p50", "ttft_p99", "itl_p50", "itl_p99"),
    *("slots_mean", "slots_peak", "prefix_hit_tokens", "prefill_busy_ms", "first_decode_ms", "to_decode_ms"),
)
SERIES_POINTS = 200


def figures(replies: Sequence[Reply], samples: Sequence[Sample], complete: bool = True) -> dict[str, Any]:
    """Figures of one run on one server; times in milliseconds, rates per second.

    Args:
        complete: False where requests were dropped on purpose: then there are no rates.
    """
    started = [reply for reply in replies if reply.chunks]
    seconds = max(r.chunks[-1][0] for r in started) - min(r.sent for r in replies)
    gaps = [gap for reply in started for gap in reply.gaps()]
    tokens = sum(len(reply.ids) for reply in replies)
    used = [sample[1] for sample in samples]
    result: dict[str, Any] = {
        "requests": len(replies),
        "input_tokens": sum(reply.prompt_tokens for reply in replies),
        "output_tokens": tokens,
        "seconds": round(seconds, 3),
        "peak_concurrency": peak_concurrency(replies),
        "peak_running": max((sample[2] for sample in samples), default=None),
        "slots_peak": max(used, default=None),
        "slots_mean": round(statistics.fmean(used)) if used else None,
        "slots_over_time": thin([[round(t, 2), u, r, w] for t, u, r, w in samples]),
    }
    if not complete:
        return result
    return result | {
        "output_tok_s": round(tokens / seconds, 2),
        "requests_s": round(len(replies) / seconds, 4),
        "ttft_p50": milliseconds([reply.ttft for reply in started], 50),
        "ttft_p99": milliseconds([reply.ttft for reply in started], 99),
        "itl_p50": milliseconds(gaps, 50),
        "itl_p99": milliseconds(gaps, 99),
        "prefix_hit_tokens": sum(reply.hit_tokens for reply in replies),
    }


def milliseconds(seconds: Sequence[float], percent: float) -> float | None:
    return round(percentile(seconds, percent) * 1000, 3) if seconds else None


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the two nearest values."""
    ranked = sorted(values)
    place = (len(ranked) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (ranked[high] - ranked[low]) * (place - low)


def peak_concurrency(replies: Sequence[Reply]) -> int:
    """Most requests at once between their first and their last token; one that was dropped has no last."""
    events = []
    for reply in replies:
        if reply.chunks:
            last = reply.chunks[-1][0] if reply.done else math.inf
            events += [(reply.chunks[0][0], 1), (last, -1)]
    # At the same instant one that begins counts beside one that ends.
    events.sort(key=lambda event: (event[0], -event[1]))
    running = peak = 0
    for _, step in events:
        running += step
        peak = max(peak, running)
    return peak


def running_now(replies: Sequence[Reply]) -> int:
    return sum(bool(reply.chunks) and not reply.done for reply in replies)


def thin(series: list[list[float]]) -> list[list[float]]:
    """At most ``SERIES_POINTS`` of the points, evenly."""
    step = max(1, math.ceil(len(series) / SERIES_POINTS))
    return series[::step]


def median_of(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row from several rounds: the median of every number; ``rounds`` keeps what is compared of each."""
    if len(rounds) == 1:
        return rounds[0]
    result = dict(rounds[-1])
    for key, value in result.items():
        values = [row[key] for row in rounds]
        if isinstance(value, (int, float)) and None not in values:
            result[key] = statistics.median(values)
    result["rounds"] = [{key: row[key] for key in COMPARED if key in row} for row in rounds]
    return result


def ratio(stock: dict[str, Any], laprox: dict[str, Any]) -> dict[str, float]:
    """LaProx / stock. With as many rounds of both in one run, which alternated, the median of the pairs'."""
    pairs = [(stock, laprox)]
    one_run = all(stock.get(key) == laprox.get(key) for key in ("command", "date"))
    if one_run and len(stock.get("rounds", ())) == len(laprox.get("rounds", ())) > 1:
        pairs = list(zip(stock["rounds"], laprox["rounds"], strict=True))
    result = {}
    for key in COMPARED:
        values = [ours[key] / theirs[key] for theirs, ours in pairs if theirs.get(key) and ours.get(key)]
        # Prefix hits that LaProx lost are a ratio of 0, not a missing one.
        if not values and stock.get(key) and laprox.get(key) == 0:
            values = [0.0]
        if values:
            result[key] = round(statistics.median(values), 4)
    return result
