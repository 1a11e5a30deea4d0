"""Rows as tables: on a terminal, and in the README.

python -m benchmarks.quality.tables      # writes the README's part anew from the committed results
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.quality.methods import SERVED
from benchmarks.quality.record import FIRST, LATER, OVER_PRUNED, UNKNOWN, paired, row_of

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "quality.json"
BEGIN, END = "<!-- quality: begin -->", "<!-- quality: end -->"
TURNS = (FIRST, LATER, OVER_PRUNED, UNKNOWN)

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
        title=f"{whole['task']}, {whole['length']:,} tokens. Turn: {whole['turn']}\n{whole['model']}, "
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


def share(budget: float) -> str:
    return f"{100 * budget:.3g} %"


def cell(row: dict[str, Any] | None, between: str = " ") -> str:
    """A row's figure with its interval."""
    if row is None:
        return ""
    if row["exact"] is None:
        reach = "" if row["low"] is None else f"{between}± {row['high'] - row['kl']:.3f}"
        return f"{row['kl']:.3f}{reach}"
    return f"{row['exact']:.0f}{between}({row['low']:+.0f}…{row['high']:+.0f})"


def markdown(content: dict[str, Any]) -> str:
    """The README's part: first turn, later turn and question unknown, side by side."""
    rows = [row for row in content["rows"] if row["task"] == "needles" and row["length"] == 2048]
    if not rows:
        return ""
    head = "| kept | " + " | ".join(TITLES.values()) + " |\n|---|" + "---|" * len(TITLES)
    lines = [head, line(rows, "all KV", 1.0)]
    budgets = sorted({row["budget"] for row in rows if row["method"] == SERVED and row["turn"] == LATER})
    lines += [line(rows, SERVED, budget) for budget in budgets]
    counts = [str(row["prompts"]) for turn in TURNS if (row := row_of(rows, turn=turn)) is not None]
    return "\n".join(
        [
            f"{rows[0]['model']}; facts in 2,048 tokens of real prose, one question to each of",
            f"{' / '.join(counts)} documents. Exact answers in per cent, and the 95 % interval of the",
            "paired difference to all KV in points (`python -m benchmarks.quality`).",
            "",
            *lines,
            "",
            "The first two columns are answers of the real server: every later turn is a first turn over",
            "exact history. The other two are simulated, and are what others do: a cache that is itself",
            "pruned and then asked again, or pruned before it is asked. Not proven: other models, other",
            "tasks, longer prompts.",
        ]
    )


TITLES = {
    FIRST: "first turn",
    LATER: "later turn, exact history",
    OVER_PRUNED: "later turn over pruned KV (simulated)",
    UNKNOWN: "pruned before the question (simulated)",
}


def line(rows: Rows, method: str, budget: float) -> str:
    cells = []
    for turn in TURNS:
        row = row_of(rows, turn=turn, method=method, budget=budget)
        cells.append("" if row is None else f"{row['exact']:.0f}" if budget == 1 else cell(row))
    return f"| {share(budget) if budget < 1 else method} | " + " | ".join(cells) + " |"


def against(rows: Rows, base: str) -> list[Table]:
    """For every task and length the paired differences of all methods to the method ``base``."""
    found = []
    for task, length in dict.fromkeys((row["task"], row["length"]) for row in rows):
        ours = [row for row in rows if (row["task"], row["length"]) == (task, length) and row["budget"] < 1]
        names = ("exact", "logprob") if ours[0]["exact"] is not None else ("kl",)
        result = Table(
            title=f"{task}, {length:,} tokens, {ours[0]['prompts']} documents: paired differences to {base}\n"
            f"of {' and '.join(names)}, 95 %",
            title_justify="left",
        )
        budgets = sorted({row["budget"] for row in ours})
        result.add_column("setting")
        for budget in budgets:
            result.add_column(share(budget), justify="right")
        for method in dict.fromkeys(row["method"] for row in ours):
            pairs = [
                (row_of(ours, method=method, budget=budget), row_of(ours, method=base, budget=budget))
                for budget in budgets
            ]
            cells = ["\n".join(difference(*pair, name) for name in names) for pair in pairs]
            result.add_row(method, *cells)
        found.append(result)
    return found


def difference(ours: dict[str, Any] | None, theirs: dict[str, Any] | None, figure: str) -> str:
    """A paired difference as it is written."""
    if ours is None or theirs is None:
        return ""
    found = paired(ours["samples"], theirs["samples"], figure)
    digits = 0 if figure == "exact" else 2
    return f"{found.mean:+.{digits}f} ({found.low:+.{digits}f}…{found.high:+.{digits}f})"


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


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    readme.write_text(f"{before}{BEGIN}\n{markdown(json.loads(RESULTS.read_text()))}\n{END}{after}")


if __name__ == "__main__":
    main()
