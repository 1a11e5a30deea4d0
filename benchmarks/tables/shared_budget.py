"""How one budget is shared over prompts, and what it costs to give slots back, for ``docs/quality.md``."""

import json
from collections.abc import Sequence
from typing import Any

from benchmarks.harness.markdown import origin, table
from benchmarks.quality import pressed
from benchmarks.quality.sharing import HEAD, rows
from benchmarks.tables.committed import RESULTS


def shared() -> str:
    record = read("sharing")
    groups = record["groups"]
    lengths = next(iter(groups[0][next(iter(groups[0]))].values()))
    return f"{said(record, lengths)}\n\n{table(HEAD, rows(groups), right=9)}"


def under_pressure() -> str:
    record = read("pressed")
    groups = record["groups"]
    return (
        f"{said(record, groups[0][pressed.ALL_KV])}\n\n{table(pressed.HEAD, pressed.rows(groups), right=6)}"
    )


def read(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((RESULTS / f"quality-{name}.json").read_text())
    return record


def said(record: dict[str, Any], group: Sequence[object]) -> str:
    prompts = len(record["groups"]) * len(group)
    return f"{prompts} prompts, {record['model']}, {record['chip']}, {origin([record])}."
