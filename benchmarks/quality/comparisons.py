"""Paired comparisons of rows, as tables on a terminal: over all lengths, by turn, and against one setting."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from benchmarks.quality.methods import SERVED
from benchmarks.quality.record import FIRST, LATER, row_of
from benchmarks.quality.samples import figures, paired, percent
from benchmarks.quality.tables import Rows, kept, lengths, share, tables

GROUP = ("task", "model", "turn")
HEAD = (*GROUP, "method", "allocator", "budget")
# Decimals that a difference is written with.
DIGITS = {"exact": 1, "logprob": 2, "kl": 3}


def all_lengths(rows: Rows) -> list[Table]:
    """For every graded task of several lengths: their documents together, in the first turn."""
    graded = [row for row in rows if row["turn"] == FIRST and row["exact"] is not None]
    return tables([row for row in together(graded) if " and " in row["length"]])


def together(rows: Rows) -> list[dict[str, Any]]:
    """One row of the documents of all lengths, for every task, model, turn and reading."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["length"]):
        head = tuple(row[name] for name in HEAD)
        groups.setdefault(head, []).append(row)
    merged = [documents(group) for group in groups.values()]
    for row in merged:
        whole = row_of(merged, budget=1, **{name: row[name] for name in GROUP})
        assert whole is not None
        row |= figures(row["samples"], whole["samples"])
    return merged


def later_turns(rows: Rows) -> list[Table]:
    """What a later turn loses on the server against the first turn: the same documents and questions."""
    pairs = later_and_first(rows)
    if not pairs:
        return []
    result = Table(title="Later turns, and the first turn: exact, %", title_justify="left")
    for name in ("task", "kept", "documents", "first", "later", "difference in points, 95 %"):
        result.add_column(name, justify="left" if name == "task" else "right")
    for later, first in pairs:
        shares = (percent(row["samples"]["exact"]) for row in (first, later))
        counted = (str(len(later["samples"]["exact"])), *(f"{value:.0f}" for value in shares))
        what = f"{later['task']}, {later['length']} tokens"
        result.add_row(what, kept(later["budget"]), *counted, difference(later, first, "exact"))
    return [result]


def later_and_first(rows: Rows) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Later turns on the server, each with the first turn of its documents; then those of all lengths."""
    served = [row for row in rows if row["method"] in (SERVED, "all KV") and row["exact"] is not None]
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = []
    groups: dict[tuple[Any, ...], list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for later in sorted(served, key=lambda row: row["length"]):
        head = {name: later[name] for name in ("task", "model", "method", "budget")}
        first = row_of(served, turn=FIRST, length=later["length"], **head)
        if later["turn"] == LATER and first is not None:
            count = min(len(row["samples"]["exact"]) for row in (later, first))
            pairs.append((documents([later], count), documents([first], count)))
            groups.setdefault(tuple(head.values()), []).append(pairs[-1])
    for group in groups.values():
        if len(group) > 1:
            later, first = (documents(side) for side in zip(*group, strict=True))
            pairs.append((later, first))
    return pairs


def documents(rows: Sequence[dict[str, Any]], count: int | None = None) -> dict[str, Any]:
    """One row of the documents of several, of each the first ``count``: no figures, the length in words."""
    listed = [{name: values for name, values in row["samples"].items() if name != "sums"} for row in rows]
    samples = {name: values[:count] for name, values in listed[0].items()}
    for more in listed[1:]:
        samples = {name: samples[name] + values[:count] for name, values in more.items()}
    sums = [row["samples"]["sums"] for row in rows if "sums" in row["samples"]]
    if sums and count is None:
        samples["sums"] = {name: sum(of[name] for of in sums) for name in sums[0]}
    length = " and ".join(map(lengths, rows))
    head = {name: rows[0][name] for name in HEAD}
    return {**head, "length": length, "samples": samples}


def against(rows: Rows, base: str) -> list[Table]:
    """For every task and length that ``base`` was tried on the paired differences of all methods to it."""
    found = []
    for task, length in dict.fromkeys((row["task"], row["length"]) for row in rows):
        ours = [row for row in rows if (row["task"], row["length"]) == (task, length) and row["budget"] < 1]
        if row_of(ours, method=base) is None:
            continue
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
            cells = [
                "\n".join(difference(*pair, name) for name in names).replace(" (", "\n(") for pair in pairs
            ]
            result.add_row(method, *cells)
        found.append(result)
    return found


def difference(ours: dict[str, Any] | None, theirs: dict[str, Any] | None, figure: str) -> str:
    """A paired difference as it is written."""
    if ours is None or theirs is None:
        return ""
    found = paired(ours["samples"], theirs["samples"], figure)
    digits = DIGITS[figure]
    return f"{found.mean:+.{digits}f} ({found.low:+.{digits}f}…{found.high:+.{digits}f})"
