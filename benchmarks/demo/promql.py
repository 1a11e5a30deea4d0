"""As much of PromQL as the dashboard asks for, over scrapes that are at hand: no Prometheus is needed."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import promql_parser
from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
NO_LABELS: Labels = frozenset()


class Scrape(NamedTuple):
    """What a server said at ``seconds``: values by name and labels."""

    seconds: float
    values: dict[str, Vector]


def scrape(seconds: float, text: str) -> Scrape:
    """Of a page in Prometheus' text format."""
    values: dict[str, Vector] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values.setdefault(sample.name, {})[frozenset(sample.labels.items())] = float(sample.value)
    return Scrape(seconds, values)


def evaluate(query: Any, scrapes: Sequence[Scrape]) -> Vector | float:
    """A query at the time of the last of ``scrapes``.

    Args:
        query: parsed.

    Raises:
        NotImplementedError: it asks for something that no panel did.
    """
    if isinstance(query, promql_parser.AggregateExpr):
        return aggregate(query, vector(query.expr, scrapes))
    if isinstance(query, promql_parser.VectorSelector):
        return select(query, scrapes[-1])
    if isinstance(query, promql_parser.BinaryExpr) and str(query.op) == "/":
        below = evaluate(query.rhs, scrapes)
        above = vector(query.lhs, scrapes)
        by = {labels: below if isinstance(below, float) else below.get(labels, math.nan) for labels in above}
        return {labels: value / by[labels] if by[labels] else math.nan for labels, value in above.items()}
    if isinstance(query, promql_parser.Call):
        name = query.func.name
        if name == "scalar":
            values = list(vector(query.args[0], scrapes).values())
            return values[0] if len(values) == 1 else math.nan
        if name in ("rate", "increase"):
            return growth(query.args[0], scrapes, name == "rate")
    raise NotImplementedError(f"{query}")


def vector(query: Any, scrapes: Sequence[Scrape]) -> Vector:
    found = evaluate(query, scrapes)
    return {NO_LABELS: found} if isinstance(found, float) else found


def aggregate(query: Any, values: Vector) -> Vector:
    """``sum`` and ``max``, by some labels or over all."""
    act: Callable[..., float] = max if str(query.op) == "max" else sum
    by = query.modifier.labels if query.modifier is not None else []
    groups: dict[Labels, list[float]] = {}
    for labels, value in values.items():
        groups.setdefault(frozenset(pair for pair in labels if pair[0] in by), []).append(value)
    return {labels: act(group) for labels, group in groups.items()}


def select(query: Any, at: Scrape) -> Vector:
    return {labels: value for labels, value in at.values.get(query.name, {}).items() if fits(query, labels)}


def fits(query: Any, labels: Labels) -> bool:
    given = dict(labels)
    return all(
        re.fullmatch(matcher.value, given.get(matcher.name, ""))
        if matcher.op == promql_parser.MatchOp.Re
        else given.get(matcher.name, "") == matcher.value
        for matcher in query.matchers.matchers
    )


def growth(query: Any, scrapes: Sequence[Scrape], per_second: bool) -> Vector:
    """What counters have grown by within a range; a server that is watched was not started anew."""
    last = scrapes[-1]
    first = next(s for s in scrapes if last.seconds - s.seconds <= query.range.total_seconds())
    before, after = select(query.vector_selector, first), select(query.vector_selector, last)
    seconds = (last.seconds - first.seconds) if per_second else 1.0
    return {
        labels: (value - before.get(labels, 0.0)) / seconds if seconds else math.nan
        for labels, value in after.items()
    }
