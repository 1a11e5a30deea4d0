"""Tables of quality: the README's, and that of all methods in ``docs/quality.md``."""

from collections.abc import Sequence
from typing import Any

from benchmarks.quality.comparisons import difference, later_and_first, together
from benchmarks.quality.methods import RIVALS, SERVED
from benchmarks.quality.record import FIRST, LATER, OVER_PRUNED, TURNS, UNKNOWN, row_of
from benchmarks.quality.tables import Rows, cell, share
from benchmarks.tables.cells import table
from benchmarks.tables.results import origin
from laprox_sglang.options.server import Config


def markdown(content: dict[str, Any]) -> str:
    """The README's part: first turn, later turn and question unknown, side by side."""
    parts = [part for part in content["parts"] if part["name"].startswith(("needles", "turns"))]
    rows = together([row for row in content["rows"] if row["task"] == "needles"])
    head = "| kept | " + " | ".join(TITLES.values()) + " |\n|---|" + "---|" * len(TITLES)
    lines = [head, line(rows, "all KV", 1.0)]
    budgets = sorted({row["budget"] for row in rows if row["method"] == SERVED and row["turn"] == LATER})
    lines += [line(rows, SERVED, budget) for budget in budgets]
    counts = [str(row["prompts"]) for turn in TURNS if (row := row_of(rows, turn=turn)) is not None]
    about = (
        f"{rows[0]['model']}; facts in {rows[0]['length']} tokens of real prose, one question to each of "
        f"{' / '.join(counts)} documents. Exact answers in per cent, and the 95 % interval of the paired "
        f"difference to all KV in points (`python -m benchmarks.quality`). {parts[0]['chip']}, "
        f"{origin(parts)}{unlike_today(parts)}."
    )
    return "\n".join([about, "", *lines, "", WHAT_IS_WHAT])


def unlike_today(parts: Sequence[dict[str, Any]]) -> str:
    """Options that documents were read with and that are not the defaults of today."""
    defaults = Config()
    other = {
        f"{name.replace('_', ' ')} {value}"
        for part in parts
        for name, value in part["served"].items()
        if name != "budget" and value != getattr(defaults, name)
    }
    return f"; not with today's defaults, but {', '.join(sorted(other))}" if other else ""


WHAT_IS_WHAT = (
    "The first two columns are answers of the real server: every later turn is a first turn over exact "
    "history. The other two are simulated, and are\nwhat others do: a cache that is itself pruned and then "
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
    for turn in TURNS:
        row = row_of(rows, turn=turn, method=method, budget=budget)
        cells.append("" if row is None else f"{row['exact']:.0f}" if budget == 1 else cell(row))
    return f"| {share(budget) if budget < 1 else method} | " + " | ".join(cells) + " |"


def methods(content: dict[str, Any]) -> str:
    """Facts in prose: all methods, LaProx beside its rivals, and later turns beside first ones."""
    needles = [row for row in content["rows"] if row["task"] == "needles"]
    first = [row for row in together(needles) if row["turn"] == FIRST]
    budgets = sorted({row["budget"] for row in first if row["budget"] < 1})
    kept = [share(budget) for budget in budgets]

    def beside(method: str) -> list[str]:
        pairs = (
            [row_of(first, method=name, budget=budget) for name in (SERVED, method)] for budget in budgets
        )
        return [difference(ours, theirs, "exact") for ours, theirs in pairs]

    whole = row_of(first, budget=1.0)
    assert whole is not None
    names = dict.fromkeys(row["method"] for row in first if row is not whole)
    answers = [("all KV", *[f"{whole['exact']:.0f}"] * len(budgets))]
    answers += [
        (name, *(cell(row_of(first, method=name, budget=budget)) for budget in budgets))
        for name in sorted(names, key=lambda name: name != SERVED)
    ]
    rivals = [(f"LaProx - {name}", *beside(name)) for name in names if name.startswith(tuple(RIVALS))]
    both = [pair for pair in later_and_first(needles) if pair[0]["length"] == whole["length"]]
    turns = [
        (share(later["budget"]) if later["budget"] < 1 else "all KV", difference(later, former, "exact"))
        for later, former in both
    ]
    compared = len(both[0][0]["samples"]["exact"])
    size = f"{whole['length']} tokens"
    return "\n\n".join(
        [
            f"Exact answers of {whole['prompts']} documents of {size} in per cent, and the 95 % interval of "
            "the paired difference to all KV in points:",
            table(("kept:", *kept), answers, right=len(kept)),
            "Paired differences in points, 95 %:",
            table(("kept:", *kept), rivals, right=len(kept)),
            f"A later turn on the server less the first turn of the same {compared} documents, in points:",
            table([name for name, _ in turns], [[text for _, text in turns]], right=len(turns)),
        ]
    )
