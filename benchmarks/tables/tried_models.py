"""Which classes of models are served, and which not, for ``docs/models.md``."""

import re
from collections.abc import Iterable
from typing import Any

from benchmarks.harness.markdown import origin, table
from benchmarks.models.candidates import CANDIDATES
from benchmarks.models.record import read
from benchmarks.models.verdict import FAILED, NOT_MADE, REFUSED, SERVED, STOCK, STOCK_FAILS, VIEW, is_right
from benchmarks.tables.committed import RESULTS

SERVED_HEAD = (
    "model",
    "class in SGLang",
    "as stock: opted out, budget 1.0",
    "views of 28 slots: log-probs",
    "stock's: log-probs",
    "cells the reference's",
)


def models() -> dict[str, str]:
    found = read(RESULTS / "models.jsonl")
    lines = [found[name] for name in CANDIDATES if name in found]
    left = [name for name in CANDIDATES if name not in found]
    return {
        "served": f"{origin(lines)}.\n\n{table(SERVED_HEAD, map(served, of(lines, SERVED)), right=4)}",
        "refused": table(
            ("model", "class in SGLang", "why", "stock, on a CPU"),
            ((*named(line), said(line["why"]), fails(line)) for line in of(lines, REFUSED)),
        ),
        "untried": f"In the program, and not tried yet: {', '.join(left) or 'none'}.",
        "undecided": table(
            ("model", "class in SGLang", "fails", "with"),
            (
                (*named(line), line["outcome"], said(line["why"]))
                for line in of(lines, STOCK_FAILS, FAILED, NOT_MADE)
            ),
        ),
    }


def of(lines: Iterable[dict[str, Any]], *outcomes: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["outcome"] in outcomes]


def named(line: dict[str, Any]) -> tuple[str, str]:
    return line["model"], f"`{line['class']}`" if "class" in line else "–"


def served(line: dict[str, Any]) -> tuple[str, ...]:
    model, name = named(line)
    counts = ", ".join(f"{count}/{line['prompts']}" for count in line["same"].values())
    reading = line["reading"]
    told = ("not compared",) * 3 if reading is None else (
        f"{reading[VIEW]:.1e}",
        f"{reading[STOCK]:.1e}",
        f"{reading['equal'] / reading['cells']:.1%}",
    )  # fmt: skip
    return (model if is_right(line) else f"**{model}: not right**", name, counts, *told)


def said(why: str) -> str:
    """A line of a log, without what every one of its kind says."""
    short = re.sub(
        r"^laprox: --model-path \S+ (?:is not served: |does not go together with --enable-laprox: )?", "", why
    )
    return f"`{short[:160].replace('|', '/')}`"


def fails(line: dict[str, Any]) -> str:
    return "fails as well" if line["stock_fails"] else "answers"
