"""From replies and samples to the figures of a row, and from two servers' figures to their ratio."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy

from benchmarks.serving.client import Reply
from benchmarks.serving.slots import Sample

# Figures of which a ratio of two servers says something.
COMPARED = (
    *("output_tok_s", "requests_s", "peak_concurrency", "ttft_p50", "ttft_p99", "itl_p50", "itl_p99"),
    *("slots_mean", "slots_peak", "prefix_hit_tokens"),
)
SERIES_POINTS = 200


def figures(replies: Sequence[Reply], samples: Sequence[Sample]) -> dict[str, Any]:
    """Figures of one run, all of whose requests ended; times in milliseconds, rates per second."""
    started = [reply for reply in replies if reply.chunks]
    begin = min(reply.sent for reply in replies)
    seconds = max(reply.chunks[-1][0] for reply in started) - begin
    gaps = [gap for reply in started for gap in reply.gaps()]
    tokens = sum(len(reply.ids) for reply in replies)
    used = [sample[1] for sample in samples]
    return {
        "requests": len(replies),
        "input_tokens": sum(reply.prompt_tokens for reply in replies),
        "output_tokens": tokens,
        "seconds": round(seconds, 3),
        "peak_concurrency": peak_concurrency(replies),
        "slots_peak": max(used, default=None),
        "slots_mean": round(statistics.fmean(used)) if used else None,
        # Seconds, slots, requests between their first and last token: by the replies, as a server counts
        # its batches only now and then.
        "slots_over_time": thin(
            [[round(t - begin, 2), used, running_at(replies, t)] for t, used, _ in samples]
        ),
        "output_tok_s": round(tokens / seconds, 2),
        "requests_s": round(len(replies) / seconds, 4),
        "ttft_p50": milliseconds([reply.ttft for reply in started], 50),
        "ttft_p99": milliseconds([reply.ttft for reply in started], 99),
        "itl_p50": milliseconds(gaps, 50),
        "itl_p99": milliseconds(gaps, 99),
        "prefix_hit_tokens": sum(reply.hit_tokens for reply in replies),
        **by_turn(started),
    }


def by_turn(replies: Sequence[Reply]) -> dict[str, list[Any]]:
    """Time to first token and hit tokens of each turn, where requests are turns of conversations."""
    last = max((reply.turn for reply in replies), default=0)
    if not last:
        return {}
    turns = [[reply for reply in replies if reply.turn == turn] for turn in range(last + 1)]
    return {
        "ttft_p50_by_turn": [milliseconds([reply.ttft for reply in turn], 50) for turn in turns],
        "hit_tokens_by_turn": [sum(reply.hit_tokens for reply in turn) for turn in turns],
    }


def milliseconds(seconds: Sequence[float], percent: float) -> float | None:
    """Linear between the two nearest values."""
    return round(float(numpy.percentile(seconds, percent)) * 1000, 3) if seconds else None


def peak_concurrency(replies: Sequence[Reply]) -> int:
    """Most requests at once between their first and their last token; one that was dropped has no last."""
    return max((running_at(replies, reply.chunks[0][0]) for reply in replies if reply.chunks), default=0)


def running_at(replies: Sequence[Reply], time: float) -> int:
    """Requests between their first and their last token at a time."""
    return sum(
        bool(reply.chunks) and reply.chunks[0][0] <= time and (not reply.done or time <= reply.chunks[-1][0])
        for reply in replies
    )


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


def ratio(other: dict[str, Any], laprox: dict[str, Any]) -> dict[str, float]:
    """LaProx / other. Prefix hits that LaProx lost are a ratio of 0, not a missing one."""
    both = [key for key in COMPARED if other.get(key) and laprox.get(key) is not None]
    return {key: round(laprox[key] / other[key], 4) for key in both}
