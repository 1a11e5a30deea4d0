"""What other settings than the served ones answer, in short: for the page about quality."""

import json
from typing import Any

from benchmarks.quality import ablation as ablations
from benchmarks.quality.record import row_of
from benchmarks.quality.tables import cell, share
from benchmarks.quality.tasks import LONGEST
from benchmarks.tables.cells import table
from benchmarks.tables.results import RESULTS, TablesError, origin
from laprox_sglang.options.server import POOLING, POOLING_KERNEL

BUDGETS = (0.025, 0.05, 0.1, 0.2, 0.4)
TASK, LENGTHS = "needles", (2048, 1024)
SUMMARY = "multi_news"
WHOLE = "all KV"
# Settings of ``benchmarks.quality.ablation``: their names, and how the page calls them.
SHOWN = {
    "average 7 (paper)": "LaProx, one ranking over the model, pooled over 7 (the paper)",
    "average 15": "LaProx, one ranking over the model",
    "15, floor 0.5": "the same, every head keeps half of its share",
    "15, by layer, floor 0.2": "**LaProx, layer by layer, a floor of 0.2**",
    "15, same in every head": "LaProx, every head keeps as much",
    "15, window 8": "LaProx, one ranking over the model, window of 8",
    "snapkv 7": "SnapKV, pooled over 7",
    "snapkv 15": "SnapKV",
    "ada-kv 7": "Ada-KV, pooled over 7",
    "ada-kv 15": "Ada-KV",
}
WINDOWS = {f"window {window}": f"window of {window}" for window in (8, 16, 24, 32, 48)}
WINDOWS["window auto"] = "**24, or 8 for small views**"
DEFAULT = f"{POOLING} {POOLING_KERNEL}"
POOLINGS = {name: f"**{name}**" if name == DEFAULT else name for name in ablations.POOLINGS}
# Task, length, what the page calls it, settings.
OTHERS = (
    ("needles by pooling", 1024, "pooling; needles in 1,024 tokens", POOLINGS),
    ("needles by pooling", 2048, "pooling; needles in 2,048 tokens", POOLINGS),
    ("prose by pooling", 2048, "pooling; prose, 2,048 tokens", POOLINGS),
    ("multi_news by pooling", LONGEST, "pooling; multi_news", POOLINGS),
    ("passcodes by pooling", 1024, "pooling; passcodes in 1,024 tokens", POOLINGS),
    ("later needles", 1024, "a later question, 1,024 tokens", WINDOWS),
    ("prose by window", 2048, "prose, 2,048 tokens", WINDOWS),
    ("small views", 512, "small views, needles in 512 tokens", WINDOWS),
    ("small views, later", 512, "small views, a later question, 512 tokens", WINDOWS),
    ("small views", 1024, "small views, needles in 1,024 tokens", WINDOWS),
    ("small views, later", 1024, "small views, a later question, 1,024 tokens", WINDOWS),
    ("small views", 2048, "small views, needles in 2,048 tokens", WINDOWS),
    ("small views, later", 2048, "small views, a later question, 2,048 tokens", WINDOWS),
    ("small views, prose", 2048, "small views, prose, 2,048 tokens", WINDOWS),
)


def ablation() -> str:
    content: dict[str, Any] = json.loads((RESULTS / "quality-ablation.json").read_text())
    return "\n\n".join(
        [
            about(content["parts"]),
            *(answers(content["rows"], length) for length in LENGTHS),
            divergence(content["rows"]),
            *(other(content["rows"], *of) for of in OTHERS),
        ]
    )


def about(parts: list[dict[str, Any]]) -> str:
    counts = ", ".join(f"{part['prompts']} of {part['name'].removeprefix('ablation ')}" for part in parts)
    return (
        f"{parts[0]['model']}, simulated; documents, and their longest in tokens: {counts}. Pooled by an "
        "average over 15 positions, with a window of 32, where nothing else is said; bold are the defaults, "
        "but for the window; where poolings are compared, LaProx is as served in all else, and the "
        "others are as in their papers. Of needles the answers that are exact in every token, in per cent, "
        "and the 95 % interval of the paired difference to all KV in points; of multi_news and prose the KL "
        "to all KV over 48 tokens that follow (less is better), and its 95 % interval. Passcodes are the 7M "
        f"model's, among such as were not asked for. {origin(parts)}."
    )


def answers(rows: list[dict[str, Any]], length: int) -> str:
    of = [row for row in rows if (row["task"], row["length"]) == (TASK, length)]
    whole = row_of(of, method=WHOLE)
    assert whole is not None
    lines = [(WHOLE, *(f"{whole['exact']:.0f}" for _ in BUDGETS))]
    lines += settings(of)
    return table((f"needles in {length:,} tokens, kept:", *map(share, BUDGETS)), lines, right=len(BUDGETS))


def divergence(rows: list[dict[str, Any]]) -> str:
    of = [row for row in rows if row["task"] == SUMMARY]
    return table((f"{SUMMARY}, kept:", *map(share, BUDGETS)), settings(of), right=len(BUDGETS))


def other(rows: list[dict[str, Any]], task: str, length: int, name: str, shown: dict[str, str]) -> str:
    of = [row for row in rows if (row["task"], row["length"]) == (task, length)]
    if not (lines := settings(of, shown)):
        raise TablesError(f"quality-ablation.json has no {task} {length}")
    return table((f"{name}, kept:", *map(share, BUDGETS)), lines, right=len(BUDGETS))


def settings(rows: list[dict[str, Any]], shown: dict[str, str] = SHOWN) -> list[tuple[str, ...]]:
    """A line for every setting that was tried on these."""
    return [
        (name, *(cell(row_of(rows, method=method, budget=budget)) for budget in BUDGETS))
        for method, name in shown.items()
        if row_of(rows, method=method) is not None
    ]
