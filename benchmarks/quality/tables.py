"""Rows as tables on a terminal."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from benchmarks.quality.methods import SERVED
from benchmarks.quality.record import row_of

Rows = Sequence[dict[str, Any]]


def tables(rows: Rows) -> list[Table]:
    """A table for every task, length and turn: methods down, budgets across."""
    found = []
    for group in dict.fromkeys(map(group_of, rows)):
        found.append(table([row for row in rows if group_of(row) == group]))
    return found


def group_of(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("task", "length", "turn", "model"))


def table(rows: Rows) -> Table:
    whole = next(row for row in rows if row["budget"] == 1)
    graded = whole["exact"] is not None
    result = Table(
        title=f"{whole['task']}, {lengths(whole)} tokens. Turn: {whole['turn']}\n{whole['model']}, "
        f"{whole['prompts']} documents\n"
        + ("exact, %, and difference to all KV in points" if graded else "KL to all KV")
        + ", 95 %; by share of the KV",
        title_justify="left",
    )
    result.add_column("method")
    budgets = sorted({row["budget"] for row in rows} - {1.0})
    for budget in budgets:
        result.add_column(share(budget), justify="right")
    if graded:
        result.add_row("all KV", *[f"{whole['exact']:.0f}"] * len(budgets))
    names = dict.fromkeys((row["method"], row["allocator"]) for row in rows if row is not whole)
    for method, allocator in sorted(names, key=lambda name: name[0] != SERVED):
        cells = [row_of(rows, method=method, allocator=allocator, budget=budget) for budget in budgets]
        name = f"{method}\n{allocator}" if allocator else method
        result.add_row(name, *(cell(row, "\n") for row in cells))
    return result


def lengths(row: dict[str, Any]) -> str:
    return row["length"] if isinstance(row["length"], str) else f"{row['length']:,}"


def share(budget: float) -> str:
    return f"{100 * budget:.3g} %"


def kept(budget: float) -> str:
    return share(budget) if budget < 1 else "all KV"


def cell(row: dict[str, Any] | None, between: str = " ") -> str:
    """A row's figure with its interval."""
    if row is None:
        return ""
    if row["exact"] is None:
        reach = "" if row["low"] is None else f"{between}± {row['high'] - row['kl']:.3f}"
        return f"{row['kl']:.3f}{reach}"
    return f"{row['exact']:.0f}{between}({row['low']:+.1f}…{row['high']:+.1f})"


def replay(part: dict[str, Any]) -> str:
    """One line: how far the server kept, and said, what the reference does."""
    said = part["replay"]
    line = f"{part['name']}: of {said['cells']:,} cells that the server kept the reference keeps "
    line += (
        f"{said['equal'] / said['cells']:.4%}; the scores of the others differ by {said['gap']:.1e} at most"
    )
    if "answers" in said:
        line += f"; {said['answers_equal']} of {said['answers']} answers are judged alike"
    return line
