"""Rows that stand beside each other in a table, and what is written of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from benchmarks.harness.markdown import table
from benchmarks.quality.methods import SERVED
from benchmarks.quality.record.documents import (
    EQUAL_BYTES,
    FIRST,
    FP8_TOO,
    IN_FP8,
    LATER,
    Reading,
    Row,
    find,
    joined,
    lengths,
)

# Decimals that a difference is written with.
DIGITS = {"exact": 1, "kl": 3}


@dataclass(frozen=True)
class Group:
    """Rows of the same documents and turn, one for each reading."""

    rows: list[Row]

    @property
    def whole(self) -> Row:
        return next(row for row in self.rows if row.key == row.key_of_whole)

    @property
    def budgets(self) -> list[float]:
        return sorted({row.budget for row in self.rows if row.budget < 1})

    @property
    def methods(self) -> list[str]:
        """Ours first."""
        return sorted(dict.fromkeys(row.method for row in self.rows if row.budget < 1), key=SERVED.__ne__)

    @property
    def about(self) -> str:
        """What the figures of its table are."""
        whole = self.whole
        if whole.graded:
            return (
                f"Exact answers of {whole.count} documents of {lengths(whole)} tokens in per cent, and the "
                "95 % interval of the paired difference to all KV in points."
            )
        return (
            f"KL to all KV over the next tokens of {whole.count} documents of at most {lengths(whole)} "
            "tokens (less is better), and its 95 % interval."
        )

    def cell(self, method: str, budget: float) -> str:
        """A figure with its interval; nothing where there is none."""
        if budget == 1:
            return f"{self.whole.percent:.0f}" if self.whole.graded else "KL"
        row = find(self.rows, method=method, budget=budget)
        if row is None:
            return ""
        said = row.figures(self.whole)
        bold = "**" * self.ahead(row)
        if row.graded:
            return f"{bold}{said['exact']:.0f} ({said['low']:+.1f}…{said['high']:+.1f}){bold}"
        reach = "" if said["low"] is None else f" ± {said['high'] - said['kl']:.3f}"
        return f"{bold}{said['kl']:.3f}{reach}{bold}"

    def table(self) -> str:
        """Methods down, budgets across; bold is what is ahead of LaProx."""
        lines = [(name, *(self.cell(name, budget) for budget in self.budgets)) for name in self.methods]
        if self.whole.graded:
            lines.insert(0, ("all KV", *[self.cell("", 1)] * len(self.budgets)))
        return table(("kept:", *map(share, self.budgets)), lines, right=len(self.budgets))

    def ahead(self, row: Row) -> bool:
        """Whether it is ahead of LaProx at its budget by more than the interval."""
        ours = find(self.rows, method=SERVED, budget=row.budget)
        if ours is None or row.method == SERVED or row.count < 2:
            return False
        return row.minus(ours, "exact").low > 0 if row.graded else row.minus(ours, "kl").high < 0

    def beside(self, budget: float) -> str:
        """LaProx, and in bold who is ahead of it."""
        ahead = [row for row in self.rows if row.budget == budget and self.ahead(row)]
        cell = self.cell(SERVED, budget)
        if not ahead:
            return cell
        best = max(ahead, key=lambda row: row.percent if row.graded else -fmean(row.numbers["kl"]))
        theirs = f"{best.percent:.0f}" if best.graded else f"{fmean(best.numbers['kl']):.3f}"
        return f"**{cell}; {best.method} {theirs}**"

    def fp8_table(self) -> str:
        """What a server says over KV in 16 bits and in fp8, and what a view loses of either."""
        budgets = (1.0, *self.budgets)
        names = [("all KV", SERVED), ("all KV" + IN_FP8, SERVED + IN_FP8)]
        sides = [
            [find(self.rows, method=whole if budget == 1 else view, budget=budget) for budget in budgets]
            for whole, view in names
        ]
        lines = [
            (title, *("" if row is None else f"{row.percent:.0f}" for row in side))
            for title, side in zip(("16 bits", "fp8"), sides, strict=True)
        ]
        lines += [
            (f"view - all KV, {title}", "", *(difference(row, side[0]) for row in side[1:]))
            for title, side in zip(("16 bits", "fp8"), sides, strict=True)
        ]
        lines.append(("fp8 - 16 bits", *(difference(b, a) for a, b in zip(*sides, strict=True))))
        return table(("kept:", *map(kept, budgets)), lines, right=len(budgets))


def difference(ours: Row | None, theirs: Row | None) -> str:
    """A paired difference as it is written."""
    if ours is None or theirs is None:
        return ""
    figure = "exact" if ours.graded else "kl"
    found, digits = ours.minus(theirs, figure), DIGITS[figure]
    return f"{found.mean:+.{digits}f} ({found.low:+.{digits}f}…{found.high:+.{digits}f})"


def groups(rows: Sequence[Row]) -> list[Group]:
    """By task, length, turn and model."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(row.documents, []).append(row)
    return [Group(of) for of in found.values()]


def all_lengths(rows: Sequence[Row]) -> list[Group]:
    """By task, turn and model: the documents of all lengths together."""
    return pooled(rows, lambda row: (row.task, row.turn, row.model))


def all_tasks(rows: Sequence[Row]) -> list[Group]:
    """By turn and model: the documents of all tasks whose answers can be exact."""
    graded = [row for row in rows if row.graded and not row.task.endswith((EQUAL_BYTES, FP8_TOO))]
    found = pooled(graded, lambda row: (row.turn, row.model))
    return [Group([replace(row, task="all tasks") for row in group.rows]) for group in found]


def pooled(rows: Sequence[Row], alike: Callable[[Row], tuple[Any, ...]]) -> list[Group]:
    """What is alike together, in the readings that all of its documents have."""
    found: dict[tuple[Any, ...], dict[Reading, list[Row]]] = {}
    for row in sorted(rows, key=lambda row: row.length):
        of = found.setdefault(alike(row), {})
        of.setdefault(Reading(row.turn, row.method, row.allocator, row.budget), []).append(row)
    pools = ([joined(of) for of in readings.values()] for readings in found.values())
    return [Group([row for row in pool if row.count == max(row.count for row in pool)]) for pool in pools]


def later_and_first(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Of one model: the later turns on the server, each with the first turn of its documents."""
    served = [row for row in rows if row.method in (SERVED, "all KV") and row.graded]
    pairs: dict[tuple[str, float], list[tuple[Row, Row]]] = {}
    for later in sorted(find_all(served, turn=LATER), key=lambda row: row.length):
        head = {name: getattr(later, name) for name in ("task", "length", "method", "budget")}
        if (first := find(served, turn=FIRST, **head)) is not None:
            count = min(later.count, first.count)
            pairs.setdefault((later.method, later.budget), []).append(
                (later.first(count), first.first(count))
            )
    return [
        (joined(later), joined(first)) for later, first in (zip(*of, strict=True) for of in pairs.values())
    ]


def find_all(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if find([row], **wanted)]


def share(budget: float) -> str:
    return f"{100 * budget:.3g} %"


def kept(budget: float) -> str:
    return share(budget) if budget < 1 else "all KV"
