"""The tables of ``docs/quality.md`` of what was found: all methods, later turns, other tasks."""

from collections.abc import Sequence
from typing import Any

from benchmarks.quality.comparisons import difference, later_and_first, together
from benchmarks.quality.methods import RIVALS, SERVED, SET_AS_WE_ARE
from benchmarks.quality.record import FIRST, row_of
from benchmarks.quality.samples import percent
from benchmarks.quality.tables import Rows, cell, kept, share
from benchmarks.tables.cells import table
from benchmarks.tables.quality import unlike_today
from benchmarks.tables.results import TablesError, origin

# Beside which LaProx as served is put, document by document.
COMPARED = ("laprox (paper)", *RIVALS)
# Where answers cannot be exact, others come close as well.
CLOSE = (*COMPARED, "criticalkv", "keydiff")
NEEDLES = "needles"


def methods(content: dict[str, Any]) -> str:
    """Facts in prose: all methods, LaProx beside its rivals, and later turns beside first ones."""
    needles = [row for row in content["rows"] if row["task"] == NEEDLES]
    parts = [part for part in content["parts"] if of_needles(part)]
    first = [row for row in together(needles) if row["turn"] == FIRST]
    whole = row_of(first, budget=1.0)
    turns = [pair for pair in later_and_first(needles) if whole and pair[0]["length"] == whole["length"]]
    if whole is None or not turns:
        raise TablesError("quality.json has no needles, or not the later turns of all their lengths")
    budgets = budgets_of(first)
    by_length = {
        length: [row for row in needles if (row["length"], row["turn"]) == (length, FIRST)]
        for length in sorted({row["length"] for row in needles})
    }
    rivals = [
        (f"{length:,} tokens, LaProx - {name}", *differences(rows, name, budgets, "exact"))
        for name in names_of(first)
        if name.removesuffix(SET_AS_WE_ARE) in COMPARED
        for length, rows in by_length.items()
    ]
    later = [
        ["first", *(f"{percent(one['samples']['exact']):.0f}" for _, one in turns)],
        ["later", *(f"{percent(other['samples']['exact']):.0f}" for other, _ in turns)],
        ["later - first", *(difference(*pair, "exact") for pair in turns)],
    ]
    compared = len(turns[0][0]["samples"]["exact"])
    about_turns = (
        f"Later turns on the server, and the first turn of the same {compared} documents, in per cent, and "
        "the paired difference in points:"
    )
    return "\n\n".join(
        [
            f"{answers_of(whole)} Those of all KV and of laprox are the server's, the others are simulated. "
            f"{replayed(parts)}{unlike_today(parts)}",
            answers(first),
            "Paired differences in points, 95 %:",
            table(("kept:", *map(share, budgets)), rivals, right=len(budgets)),
            about_turns,
            table(("kept:", *(kept(one["budget"]) for one, _ in turns)), later, right=len(turns)),
        ]
    )


def other_tasks(content: dict[str, Any]) -> str:
    """All tasks but facts in prose: exact answers, or KL where an answer cannot be exact."""
    parts = [part for part in content["parts"] if not of_needles(part)]
    if not parts:
        raise TablesError("quality.json has no other task than needles")
    found = [f"{parts[0]['chip']}, {origin(parts)}.{unlike_today(parts)}"]
    first = [row for row in together(content["rows"]) if row["turn"] == FIRST and row["task"] != NEEDLES]
    for task in dict.fromkeys(row["task"] for row in first):
        rows = [row for row in first if row["task"] == task]
        whole = row_of(rows, budget=1.0)
        assert whole is not None
        found += [f"**{task}**, {whole['model']}. {answers_of(whole)}", answers(rows)]
        if whole["exact"] is None:
            rivals = [
                (f"LaProx - {name}", *differences(rows, name, budgets_of(rows), "kl"))
                for name in names_of(rows)
                if name.removesuffix(SET_AS_WE_ARE) in CLOSE
            ]
            head = ("kept:", *map(share, budgets_of(rows)))
            found += ["Paired differences:", table(head, rivals, right=len(head) - 1)]
    return "\n\n".join(found)


def of_needles(part: dict[str, Any]) -> bool:
    return str(part["name"]).startswith((NEEDLES, "turns"))


def answers_of(whole: dict[str, Any]) -> str:
    """What the figures of a table are."""
    if whole["exact"] is None:
        return (
            f"KL to all KV over the next tokens of {whole['prompts']} documents of at most {whole['length']} "
            "tokens (less is better), and its 95 % interval."
        )
    return (
        f"Exact answers of {whole['prompts']} documents of {whole['length']} tokens in per cent, and the "
        "95 % interval of the paired difference to all KV in points."
    )


def answers(rows: Rows) -> str:
    """Methods down, budgets across."""
    budgets = budgets_of(rows)
    whole = row_of(rows, budget=1.0)
    assert whole is not None
    lines = [] if whole["exact"] is None else [("all KV", *[f"{whole['exact']:.0f}"] * len(budgets))]
    lines += [
        (name, *(cell(row_of(rows, method=name, budget=budget)) for budget in budgets))
        for name in names_of(rows)
    ]
    return table(("kept:", *map(share, budgets)), lines, right=len(budgets))


def budgets_of(rows: Rows) -> list[float]:
    return sorted({row["budget"] for row in rows if row["budget"] < 1})


def names_of(rows: Rows) -> list[str]:
    """Methods, ours first."""
    return sorted(dict.fromkeys(row["method"] for row in rows if row["budget"] < 1), key=SERVED.__ne__)


def replayed(parts: Sequence[dict[str, Any]]) -> str:
    """What the server said and kept beside the reference."""
    names = ("answers", "answers_equal", "cells", "equal")
    said, alike, cells, equal = (sum(part["replay"][name] for part in parts) for name in names)
    return (
        f"Of {said:,} answers of the server {alike:,} are judged alike if simulated over the cells that "
        f"it kept; of these {cells:,} cells the reference keeps {100 * equal / cells:.1f} %."
    )


def differences(rows: Rows, method: str, budgets: Sequence[float], figure: str) -> list[str]:
    """LaProx less another method."""
    pairs = ([row_of(rows, method=name, budget=budget) for name in (SERVED, method)] for budget in budgets)
    return [difference(ours, theirs, figure) for ours, theirs in pairs]
