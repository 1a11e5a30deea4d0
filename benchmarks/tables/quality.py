"""Tables of quality: the README's, and that of all methods in ``docs/quality.md``."""

from collections.abc import Sequence
from typing import Any

from benchmarks.quality.comparisons import difference, later_and_first, together
from benchmarks.quality.methods import RIVALS, SERVED, SET_AS_WE_ARE
from benchmarks.quality.record import FIRST, LATER, OVER_PRUNED, UNKNOWN, percent, row_of
from benchmarks.quality.tables import Rows, cell, share
from benchmarks.tables.cells import table
from benchmarks.tables.results import TablesError, origin
from laprox_sglang.options.server import Config


def markdown(content: dict[str, Any]) -> str:
    """The README's part: first turn, later turn and question unknown, side by side."""
    parts = [part for part in content["parts"] if part["name"].startswith(("needles", "turns"))]
    rows = together([row for row in content["rows"] if row["task"] == "needles"])
    head = "| kept | " + " | ".join(TITLES.values()) + " |\n|---|" + "---|" * len(TITLES)
    lines = [head, line(rows, "all KV", 1.0)]
    budgets = sorted({row["budget"] for row in rows if row["method"] == SERVED and row["turn"] == LATER})
    lines += [line(rows, SERVED, budget) for budget in budgets]
    counts = [str(row["prompts"]) for turn in TITLES if (row := row_of(rows, turn=turn)) is not None]
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
    for turn in TITLES:
        row = row_of(rows, turn=turn, method=method, budget=budget)
        cells.append("" if row is None else f"{row['exact']:.0f}" if budget == 1 else cell(row))
    return f"| {share(budget) if budget < 1 else method} | " + " | ".join(cells) + " |"


def methods(content: dict[str, Any]) -> str:
    """Facts in prose: all methods, LaProx beside its rivals, and later turns beside first ones."""
    needles = [row for row in content["rows"] if row["task"] == "needles"]
    parts = [part for part in content["parts"] if part["name"].startswith(("needles", "turns"))]
    first = [row for row in together(needles) if row["turn"] == FIRST]
    whole = row_of(first, budget=1.0)
    turns = [pair for pair in later_and_first(needles) if whole and pair[0]["length"] == whole["length"]]
    if whole is None or not turns:
        raise TablesError("quality.json has no needles, or not the later turns of all their lengths")
    budgets = sorted({row["budget"] for row in first if row["budget"] < 1})
    names = sorted(dict.fromkeys(row["method"] for row in first if row is not whole), key=SERVED.__ne__)
    answers = [("all KV", *[f"{whole['exact']:.0f}"] * len(budgets))]
    answers += [
        (name, *(cell(row_of(first, method=name, budget=budget)) for budget in budgets)) for name in names
    ]
    rivals = [
        (f"{length:,} tokens, LaProx - {name}", *differences(needles, length, name, budgets))
        for name in names
        if name.removesuffix(SET_AS_WE_ARE) in RIVALS
        for length in sorted({row["length"] for row in needles})
    ]
    later = [
        ["first", *(f"{percent(one['samples']['exact']):.0f}" for _, one in turns)],
        ["later", *(f"{percent(other['samples']['exact']):.0f}" for other, _ in turns)],
        ["later - first", *(difference(*pair, "exact") for pair in turns)],
    ]
    kept = ("kept:", *map(share, budgets))
    about = (
        f"Exact answers of {whole['prompts']} documents of {whole['length']} tokens in per cent, and the 95 "
        "% interval of the paired difference to all KV in points. Those of all KV and of laprox are the "
        f"server's, the others are simulated. {replayed(parts)}"
    )
    compared = len(turns[0][0]["samples"]["exact"])
    about_turns = (
        f"Later turns on the server, and the first turn of the same {compared} documents, in per cent, and "
        "the paired difference in points:"
    )
    return "\n\n".join(
        [
            *(about, table(kept, answers, right=len(budgets))),
            *("Paired differences in points, 95 %:", table(kept, rivals, right=len(budgets))),
            *(about_turns, table(("kept:", *map(kept_share, turns)), later, right=len(turns))),
        ]
    )


def replayed(parts: Sequence[dict[str, Any]]) -> str:
    """What the server said and kept beside the reference."""
    names = ("answers", "answers_equal", "cells", "equal")
    answers, alike, cells, equal = (sum(part["replay"][name] for part in parts) for name in names)
    return (
        f"Of {answers:,} answers of the server {alike:,} are judged alike if simulated over the cells that "
        f"it kept; of these {cells:,} cells the reference keeps {100 * equal / cells:.1f} %."
    )


def differences(rows: Rows, length: int, method: str, budgets: Sequence[float]) -> list[str]:
    """LaProx less another method, in the first turn."""
    found = []
    for budget in budgets:
        wanted = {"length": length, "turn": FIRST, "budget": budget}
        ours, theirs = (row_of(rows, method=name, **wanted) for name in (SERVED, method))
        found.append(difference(ours, theirs, "exact"))
    return found


def kept_share(pair: tuple[dict[str, Any], dict[str, Any]]) -> str:
    return share(pair[0]["budget"]) if pair[0]["budget"] < 1 else "all KV"
