"""The README's table of quality."""

from collections.abc import Sequence
from typing import Any

from benchmarks.quality.comparisons import together
from benchmarks.quality.methods import SERVED
from benchmarks.quality.record import FIRST, LATER, OVER_PRUNED, UNKNOWN, row_of
from benchmarks.quality.tables import Rows, cell, kept
from benchmarks.tables.cells import wrapped
from laprox_sglang.options.server import Config


def markdown(content: dict[str, Any]) -> str:
    """The README's part: first turn, later turn and question unknown, side by side."""
    rows = together([row for row in content["rows"] if row["task"] == "needles"])
    head = "| kept | " + " | ".join(TITLES.values()) + " |\n|---|" + "---|" * len(TITLES)
    lines = [head, line(rows, "all KV", 1.0)]
    budgets = sorted({row["budget"] for row in rows if row["method"] == SERVED and row["turn"] == LATER})
    lines += [line(rows, SERVED, budget) for budget in budgets]
    counts = [str(row["prompts"]) for turn in TITLES if (row := row_of(rows, turn=turn)) is not None]
    about = (
        f"{rows[0]['model']}; facts in {rows[0]['length']} tokens of real prose, one question to each of "
        f"{' / '.join(counts)} documents. Exact answers in per cent, and the 95 % interval of the paired "
        f"difference to all KV in points (`python -m benchmarks.quality`)."
    )
    return "\n".join([wrapped(about), "", *lines, "", wrapped(WHAT_IS_WHAT)])


def parts_of(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of the record that the README's table is made of."""
    return [part for part in content["parts"] if part["name"].startswith(("needles", "turns"))]


def unlike_today(parts: Sequence[dict[str, Any]]) -> str:
    """A sentence on options that documents were read with and that are not the defaults of today, if any."""
    defaults = Config()
    other = {
        f"{name.replace('_', ' ')} {value}"
        for part in parts
        for name, value in part["served"].items()
        if name != "budget" and value != getattr(defaults, name)
    }
    return f" Not with today's defaults, but {', '.join(sorted(other))}." if other else ""


WHAT_IS_WHAT = (
    "The first two columns are answers of the real server: every later turn is a first turn over exact "
    "history. The other two are simulated, and are what others do: a cache that is itself pruned and then "
    "asked again, or pruned before it is asked. Not proven: other models, other tasks, longer prompts."
)
TITLES = {
    FIRST: "first turn",
    LATER: "later turn, exact history",
    OVER_PRUNED: "later turn over pruned KV (simulated)",
    UNKNOWN: "pruned before the question (simulated)",
}


def line(rows: Rows, method: str, budget: float) -> str:
    cells = []
    for turn in TITLES:
        row = row_of(rows, turn=turn, method=method, budget=budget)
        cells.append("" if row is None else f"{row['exact']:.0f}" if budget == 1 else cell(row))
    return f"| {kept(budget)} | " + " | ".join(cells) + " |"
