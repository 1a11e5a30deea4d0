"""The results in words and tables: of a run on a terminal, of the record in README.md and docs/quality.md."""

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.harness.markdown import origin, table, wrapped
from benchmarks.quality.methods import RIVALS, SERVED, SET_AS_WE_ARE
from benchmarks.quality.record.documents import FIRST, IN_FP8, LATER, OVER_PRUNED, UNKNOWN, Row
from benchmarks.quality.record.groups import (
    Group,
    all_lengths,
    difference,
    find_all,
    groups,
    kept,
    later_and_first,
    share,
)
from benchmarks.quality.record.results_file import Results, ResultsError
from laprox_sglang.options.server import Config

Parts = Sequence[dict[str, Any]]
NEEDLES = "needles"
# Beside which LaProx as served is put, document by document. Without exact answers others come close.
COMPARED = ("laprox (paper)", *RIVALS)
CLOSE = (*COMPARED, "criticalkv", "keydiff")
TITLES = {
    FIRST: "first turn",
    LATER: "later turn, exact history",
    OVER_PRUNED: "later turn over pruned KV (simulated)",
    UNKNOWN: "pruned before the question (simulated)",
}


def of_run(results: Results) -> str:
    """All that a file holds."""
    found = []
    for group in all_lengths(results.rows):
        whole = group.whole
        found += [f"**{whole.task}**, {whole.model}, turn: {whole.turn}. {group.about}", shown(group)]
        if whole.turn == FIRST and not fp8_too(group):
            base = SERVED if SERVED in group.methods else group.methods[0]
            rivals = [
                (f"{base} - {name}", *group.differences(name, base)) for name in group.methods if name != base
            ]
            found += ["Paired differences:", kept_table(group.budgets, rivals)] if rivals else []
            same = find_all(results.rows, task=whole.task, model=whole.model)
            if pairs := later_and_first(same):
                found += [
                    f"Later turns of {whole.task}, and the first turn of the same documents:",
                    turns(pairs),
                ]
    return "\n\n".join([*found, *(replayed_line(part) for part in results.parts if part["replay"])])


def readme(results: Results) -> str:
    """First turn, later turn and question unknown, side by side."""
    by_turn = {group.whole.turn: group for group in all_lengths(find_all(results.rows, task=NEEDLES))}
    whole = by_turn[FIRST].whole
    counts = [str(by_turn[turn].whole.count) for turn in TITLES if turn in by_turn]
    about = (
        f"{whole.model}; facts in {whole.length} tokens of real prose, one question to each of "
        f"{' / '.join(counts)} documents. Exact answers in per cent, and the 95 % interval of the paired "
        f"difference to all KV in points (`python -m benchmarks.quality`)."
    )
    lines = ["| kept | " + " | ".join(TITLES.values()) + " |", "|---|" + "---|" * len(TITLES)]
    for budget in (1.0, *by_turn[LATER].budgets):
        of = [by_turn.get(turn) for turn in TITLES]
        cells = ("" if group is None else group.cell(SERVED, budget) for group in of)
        lines.append(f"| {kept(budget)} | " + " | ".join(cells) + " |")
    return "\n".join([wrapped(about), "", *lines])


def needles(results: Results) -> str:
    """Facts in prose: all methods, LaProx beside its rivals, and later turns beside first ones."""
    rows, parts = find_all(results.rows, task=NEEDLES), needles_parts(results.parts)
    first = next((group for group in all_lengths(rows) if group.whole.turn == FIRST), None)
    pairs = later_and_first(rows)
    if first is None or not pairs or pairs[0][0].length != first.whole.length:
        raise ResultsError(f"{results.path} has no needles, or not the later turns of all their lengths")
    by_length = sorted(groups(find_all(rows, turn=FIRST)), key=lambda group: group.whole.length)
    rivals = [
        (f"{group.whole.length:,} tokens, LaProx - {name}", *group.differences(name))
        for name in first.methods
        if name.removesuffix(SET_AS_WE_ARE) in COMPARED
        for group in by_length
    ]
    return "\n\n".join(
        [
            f"{first.about} Those of all KV and of laprox are the server's, the others are simulated. "
            f"{replayed(parts)}{unlike_today(parts)}",
            first.table(),
            "Paired differences in points, 95 %:",
            kept_table(first.budgets, rivals),
            f"Later turns on the server, and the first turn of the same {pairs[0][0].count} documents, in "
            "per cent, and the paired difference in points:",
            turns(pairs),
        ]
    )


def other_tasks(results: Results) -> str:
    """All tasks but facts in prose: exact answers, or KL where an answer cannot be exact."""
    needed = needles_parts(results.parts)
    parts = [part for part in results.parts if part not in needed]
    if not parts:
        raise ResultsError(f"{results.path} has no other task than needles")
    found = [f"{parts[0]['chip']}, {origin(parts)}.{unlike_today(parts)}"]
    for group in all_lengths(results.rows):
        whole = group.whole
        if whole.turn != FIRST or whole.task == NEEDLES:
            continue
        found += [f"**{whole.task}**, {whole.model}. {group.about}", shown(group)]
        if not whole.graded:
            rivals = [
                (f"LaProx - {name}", *group.differences(name))
                for name in group.methods
                if name.removesuffix(SET_AS_WE_ARE) in CLOSE
            ]
            found += ["Paired differences:", kept_table(group.budgets, rivals)]
    return "\n\n".join(found)


def fp8_too(group: Group) -> bool:
    return SERVED + IN_FP8 in group.methods and group.whole.graded


def shown(group: Group) -> str:
    return group.fp8_table() if fp8_too(group) else group.table()


def needles_parts(parts: Parts) -> list[dict[str, Any]]:
    return [part for part in parts if part["name"].startswith((NEEDLES, f"turns:{NEEDLES}"))]


def kept_table(budgets: Iterable[float], rows: Sequence[Sequence[str]]) -> str:
    head = ("kept:", *map(share, budgets))
    return table(head, rows, right=len(head) - 1)


def turns(pairs: Sequence[tuple[Row, Row]]) -> str:
    """Later turns beside the first turn, budgets across."""
    lines = [
        ["first", *(f"{first.percent:.0f}" for _, first in pairs)],
        ["later", *(f"{later.percent:.0f}" for later, _ in pairs)],
        ["later - first", *(difference(*pair) for pair in pairs)],
    ]
    return table(("kept:", *(kept(later.budget) for later, _ in pairs)), lines, right=len(pairs))


def replayed(parts: Parts) -> str:
    """What the server said and kept beside the reference."""
    names = ("answers", "answers_equal", "cells", "equal")
    said, alike, cells, equal = (sum(part["replay"][name] for part in parts) for name in names)
    return (
        f"Of {said:,} answers of the server {alike:,} are judged alike if simulated over the cells that "
        f"it kept; of these {cells:,} cells the reference keeps {100 * equal / cells:.1f} %."
    )


def replayed_line(part: dict[str, Any]) -> str:
    """The same of one part, and how far the scores are apart where the two differ."""
    said = part["replay"]
    line = (
        f"{part['name']}: of {said['cells']:,} cells that the server kept the reference keeps "
        f"{said['equal'] / said['cells']:.4%}; the scores of the others differ by {said['gap']:.1e} at most"
    )
    if "answers" in said:
        line += f"; {said['answers_equal']} of {said['answers']} answers are judged alike"
    return line


def unlike_today(parts: Parts) -> str:
    """A sentence on options that documents were read with and that are not the defaults of today, if any."""
    defaults = Config()
    other = {
        f"{name.replace('_', ' ')} {value}"
        for part in parts
        for name, value in part["served"].items()
        if name != "budget" and value != getattr(defaults, name)
    }
    return f" Not with today's defaults, but {', '.join(sorted(other))}." if other else ""
