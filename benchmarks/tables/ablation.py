"""What other settings than the served ones answer, in short: for the page about quality."""

import json
from typing import Any

from benchmarks.quality.record import row_of
from benchmarks.quality.tables import cell, share
from benchmarks.tables.cells import table
from benchmarks.tables.results import RESULTS, origin

BUDGETS = (0.025, 0.05, 0.1, 0.2)
TASK, LENGTHS = "needles", (2048, 1024)
WHOLE = "all KV"
# Settings of ``benchmarks.quality.ablation``: their names, and how the page calls them.
SHOWN = {
    "average 7 (paper)": "LaProx, pooled over 7 (the paper)",
    "average 15": "LaProx, pooled over 15",
    "15, floor 0.5": "the same, every head keeps half of its share",
    "15, same in every head": "the same, every head keeps as much",
    "15, window 8": "the same, window of 8",
    "snapkv 7": "SnapKV, pooled over 7",
    "snapkv 15": "SnapKV, pooled over 15",
    "ada-kv 7": "Ada-KV, pooled over 7",
    "ada-kv 15": "Ada-KV, pooled over 15",
}


def ablation() -> str:
    content: dict[str, Any] = json.loads((RESULTS / "quality-ablation.json").read_text())
    parts = [part for part in content["parts"] if part["name"].startswith(f"ablation {TASK}")]
    return "\n\n".join([about(content, parts), *(by_length(content["rows"], length) for length in LENGTHS)])


def about(content: dict[str, Any], parts: list[dict[str, Any]]) -> str:
    counts = ", ".join(f"{part['prompts']} of {part['name'].split()[-1]}" for part in parts)
    return (
        f"{parts[0]['model']}, simulated; documents and their tokens: {counts}. Answers that are exact in "
        "every token, in per cent, and the 95 % interval of the paired difference to all KV in points. "
        f"{origin(parts)}."
    )


def by_length(rows: list[dict[str, Any]], length: int) -> str:
    of = [row for row in rows if (row["task"], row["length"]) == (TASK, length)]
    whole = row_of(of, method=WHOLE)
    assert whole is not None
    lines = [(WHOLE, *(f"{whole['exact']:.0f}" for _ in BUDGETS))]
    lines += [
        (name, *(cell(row_of(of, method=method, budget=budget)) for budget in BUDGETS))
        for method, name in SHOWN.items()
    ]
    head = (f"{length:,} tokens, kept:", *map(share, BUDGETS))
    return table(head, lines, right=len(BUDGETS))
