"""Rows that stand beside each other in a table, and what is written of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.markdown import table
from benchmarks.quality.methods import SERVED
from benchmarks.quality.record.documents import FIRST, IN_FP8, LATER, Row, find, joined, lengths

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
            return f"{self.whole.percent:.0f}"
        row = find(self.rows, method=method, budget=budget)
        if row is None:
            return ""
        said = row.figures(self.whole)
        if row.graded:
            return f"{said['exact']:.0f} ({said['low']:+.1f}…{said['high']:+.1f})"
        return f"{said['kl']:.3f}" + ("" if said["low"] is None else f" ± {said['high'] - said['kl']:.3f}")

    def table(self, title: str = "kept:", methods: dict[str, str] | None = None, all_kv: bool = True) -> str:
        """Methods down, budgets across.

        Args:
            methods: those that are shown, with their names in the table.
        """
        shown = methods or {name: name for name in self.methods}
        lines = [
            (name, *(self.cell(method, budget) for budget in self.budgets)) for method, name in shown.items()
        ]
        if self.whole.graded and all_kv:
            lines.insert(0, ("all KV", *[self.cell("", 1)] * len(self.budgets)))
        return table((title, *map(share, self.budgets)), lines, right=len(self.budgets))

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

    def differences(self, other: str, ours: str = SERVED) -> list[str]:
        """LaProx less another method."""
        pairs = [
            [find(self.rows, method=name, budget=budget) for name in (ours, other)] for budget in self.budgets
        ]
        return [difference(*pair) for pair in pairs]


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
    readings: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.length):
        readings.setdefault((row.task, row.turn, *row.key[3:]), []).append(row)
    found: dict[tuple[Any, ...], list[Row]] = {}
    for (task, turn, model, *_), of in readings.items():
        found.setdefault((task, turn, model), []).append(joined(of))
    return [Group(of) for of in found.values()]


def later_and_first(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Of one task and model: the later turns on the server, each with the first turn of its documents."""
    served = [row for row in rows if row.method in (SERVED, "all KV") and row.graded]
    pairs: dict[tuple[str, float], list[tuple[Row, Row]]] = {}
    for later in sorted(find_all(served, turn=LATER), key=lambda row: row.length):
        head = {"length": later.length, "method": later.method, "budget": later.budget}
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
