"""The committed results, and what they say about where they come from."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.checks.record import read as read_checks
from benchmarks.harness.provenance import ROOT
from benchmarks.serving.record import read

RESULTS = ROOT / "benchmarks" / "results"
KERNELS = "kernels-h200-pip.json"
Side = dict[str, Any]


class TablesError(ValueError):
    """Results and pages that do not go together; the message is one line."""


def serving() -> dict[str, dict[str, Any]]:
    """Contents of the serving results by chip: ``h200``, and what else was measured."""
    return contents("serving", read)


def checks() -> dict[str, dict[str, Any]]:
    """Contents of the checks' results by file: ``h100``, and what else was checked."""
    return contents("checks", read_checks)


def contents(benchmark: str, reader: Callable[[Path], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    paths = sorted(RESULTS.glob(f"{benchmark}-*.json"), reverse=True)
    found = {path.stem.removeprefix(f"{benchmark}-"): reader(path) for path in paths}
    return {chip: content for chip, content in found.items() if not content["quick"]}


def kernels() -> dict[str, Any]:
    """Times of kernels, and of copies to host memory and back."""
    content: dict[str, Any] = json.loads((RESULTS / KERNELS).read_text())
    return content


def sides(rows: Iterable[dict[str, Any]]) -> list[Side]:
    return [side for row in rows for side in row.values() if isinstance(side, dict) and "commit" in side]
