"""The results in words and tables: of a run on a terminal, of the record in README.md and docs/quality.md."""

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

from benchmarks.harness.markdown import origin, table, wrapped
from benchmarks.quality.methods import BUDGETS, SERVED
from benchmarks.quality.record.documents import (
    EQUAL_BYTES,
    FIRST,
    FP8_TOO,
    IN_FP8,
    LATER,
    OVER_PRUNED,
    UNKNOWN,
    Row,
    lengths,
)
from benchmarks.quality.record.groups import (
    Group,
    all_lengths,
    all_tasks,
    difference,
    find_all,
    kept,
    later_and_first,
    share,
)
from benchmarks.quality.record.results_file import Results, ResultsError
from laprox_sglang.options.server import Config

Parts = Sequence[dict[str, Any]]
TITLES = {
    FIRST: "first turn",
    LATER: "later turn, exact history",
    OVER_PRUNED: "later turn over pruned KV (simulated)",
    UNKNOWN: "pruned before the question (simulated)",
}


def of_run(results: Results) -> str:
    """All that a file holds."""
    found = [text for group in all_lengths(results.rows) for text in (about(group), shown(group))]
    return "\n\n".join([*found, *later_turns(results.rows), *map(replayed, results.parts)])


def readme(results: Results) -> str:
    """First turn, later turn and question unknown, side by side, of every model that has them."""
    found: dict[str, dict[str, Group]] = {}
    for group in all_tasks(results.rows):
        found.setdefault(group.whole.model, {})[group.whole.turn] = group
    rows = []
    for model, turns in found.items():
        if turns.keys() == TITLES.keys():
            counts = " / ".join(f"{turns[turn].whole.count:,}" for turn in TITLES)
            tokens = lengths(turns[FIRST].whole)
            rows.append((f"{model}: {counts} documents of {tokens} tokens", *[""] * len(TITLES)))
            rows += [
                (kept(budget), *(turns[turn].cell(SERVED, budget) for turn in TITLES))
                for budget in (1.0, *turns[LATER].budgets)
            ]
    if not rows:
        raise ResultsError(f"{results.path} has no model with all turns")
    about = (
        "All tasks together, one question to a document. Exact answers in per cent, and the 95 % interval of "
        "the paired difference to all KV in points (`python -m benchmarks.quality`)."
    )
    return f"{wrapped(about)}\n\n{table(('kept', *TITLES.values()), rows)}"


def by_task(results: Results) -> str:
    """LaProx task by task, and where another method is ahead; all methods in the first turn, folded."""
    every = all_lengths(results.rows)
    found = [
        f"{', '.join(sorted({part['chip'] for part in results.parts}))}, {origin(results.parts)}."
        f"{unlike_today(results.parts)}",
        "Exact answers on the server in per cent, and the 95 % interval of the paired difference to all KV "
        "in points; where an answer cannot be exact KL to all KV over the next tokens (less is better). In "
        "**bold** where another method, simulated over the same documents, is ahead of LaProx by more than "
        "the interval of their difference.",
    ]
    rows = []
    other_kv = [group for group in every if group.whole.task.endswith((EQUAL_BYTES, FP8_TOO))]
    for turn, model in product((FIRST, LATER), dict.fromkeys(row.model for row in results.rows)):
        found_here = [
            (whole.task, lengths(whole), f"{whole.count:,}", group.cell("", 1), *map(group.beside, BUDGETS))
            for group in every
            if ((whole := group.whole).model, whole.turn) == (model, turn)
            and SERVED in group.methods
            and group not in other_kv
        ]
        rows += [(f"**{model}, {TITLES[turn]}**", *[""] * 8), *found_here] if found_here else []
    found.append(table(("task", "tokens", "documents", "all KV", *map(share, BUDGETS)), rows, right=7))
    found += later_turns(results.rows)
    first = [group for group in all_tasks(results.rows) if group.whole.turn == FIRST]
    return "\n\n".join([*found, *map(folded, [*first, *other_kv])])


def shown(group: Group) -> str:
    in_fp8_too = SERVED + IN_FP8 in group.methods and group.whole.graded
    return group.fp8_table() if in_fp8_too else group.table()


def folded(group: Group) -> str:
    title = f"{group.whole.task}, {group.whole.model}: {TITLES[group.whole.turn]}"
    return f"<details><summary>{title}</summary>\n\n{group.about}\n\n{shown(group)}\n\n</details>"


def about(group: Group) -> str:
    return f"**{group.whole.task}**, {group.whole.model}, {TITLES[group.whole.turn]}. {group.about}"


def later_turns(rows: Sequence[Row]) -> list[str]:
    """Later turns beside the first turn of the same documents, of every model."""
    found = []
    for model in dict.fromkeys(row.model for row in rows):
        if pairs := later_and_first(find_all(rows, model=model)):
            lines = [
                ["first", *(f"{first.percent:.0f}" for _, first in pairs)],
                ["later", *(f"{later.percent:.0f}" for later, _ in pairs)],
                ["later - first", *(difference(*pair) for pair in pairs)],
            ]
            found += [
                f"{model}: later turns on the server, and the first turn of the same {pairs[0][0].count} "
                "documents, in per cent, and the paired difference in points:",
                table(("kept:", *(kept(later.budget) for later, _ in pairs)), lines, right=len(pairs)),
            ]
    return found


def replayed(part: dict[str, Any]) -> str:
    """What the server said and kept beside the reference, and how far apart scores are where they differ."""
    said = part["replay"]
    if not said:
        return ""
    line = (
        f"{part['name']}: of {said['cells']:,} cells that the server kept the reference keeps "
        f"{said['equal'] / said['cells']:.4%}; the scores of the others differ by {said['gap']:.1e} at most"
    )
    if "answers" in said:
        line += f"; {said['answers_equal']} of {said['answers']} answers are judged alike"
    return line


def unlike_today(parts: Iterable[dict[str, Any]]) -> str:
    """A sentence on options that documents were read with and that are not the defaults of today, if any."""
    defaults = Config()
    other = {
        f"{name.replace('_', ' ')} {value}"
        for part in parts
        for name, value in part["served"].items()
        if name != "budget" and value != getattr(defaults, name)
    }
    return f" Not with today's defaults, but {', '.join(sorted(other))}." if other else ""
