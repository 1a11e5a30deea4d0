"""The figures of README and docs, page by page."""

from typing import Any

from benchmarks.quality.record import Record
from benchmarks.tables.ablation import ablation
from benchmarks.tables.cells import table
from benchmarks.tables.headline import headline
from benchmarks.tables.methods import methods, other_tasks
from benchmarks.tables.quality import markdown
from benchmarks.tables.results import RESULTS, checks, commit, kernels
from benchmarks.tables.sources import sources
from benchmarks.tables.speed import against_stock

# Cards of the record.
CHECKS_CHIP = KERNELS_CHIP = "h100"
HISTORIES = (1024, 8192, 32768, 131072)


def readme() -> dict[str, str]:
    content = of_quality()
    return {
        "headline": headline(),
        "serving": against_stock(),
        "quality": markdown(content),
        "sources": sources(content),
    }


def of_quality() -> dict[str, Any]:
    return Record(RESULTS / "quality.json", None).content


def on_a_gpu() -> dict[str, str]:
    return {"pruning": pruning()}


def quality() -> dict[str, str]:
    content = of_quality()
    found = {"methods": methods(content), "others": other_tasks(content)}
    return {"needles": needles(), **found, "ablation": ablation()}


def pruning() -> str:
    """What pruning takes of a prompt, by the length of its history."""
    content = kernels(KERNELS_CHIP)
    times = {row["case"]: row["ms"] for row in content["rows"]}
    parts = ("scoring", "selecting", "packing apart", "all three, apart")
    lines = [
        (f"{tokens:,}", *(f"{times[f'{tokens} tokens, 5% kept, {part}']:.2f} ms" for part in parts))
        for tokens in HISTORIES
    ]
    head = ("tokens of history", "scoring", "selecting", "packing", "all three")
    about = f"{content['chip']}, {content['date']}, commit {commit(content)}."
    return about + "\n\n" + table(head, lines, right=4)


def needles() -> str:
    content = checks()[CHECKS_CHIP]
    part = content["parts"]["needles"]
    told = [row for row in content["rows"] if row["check"] == "needles" and row["what"].startswith("exact")]
    values = "; ".join(f"{row['what']}: {row['value']:.1f} %" for row in told)
    return f"{content['chip']}, {part['date']}, commit {commit(part)}: {values}."
