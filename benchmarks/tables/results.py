"""The committed results, and what they say about where they come from."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.checks.record import read as read_checks
from benchmarks.harness.provenance import ROOT
from benchmarks.serving.record import read

RESULTS = ROOT / "benchmarks" / "results"
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


def kernels(chip: str) -> dict[str, Any]:
    """Times of pruning, kernel by kernel."""
    content: dict[str, Any] = json.loads((RESULTS / f"kernels-prune-{chip}.json").read_text())
    return content


def sides(rows: Iterable[dict[str, Any]]) -> list[Side]:
    return [side for row in rows for side in row.values() if isinstance(side, dict) and "commit" in side]


def origin(parts: Iterable[Side]) -> str:
    """Dates, commits and versions of parts, in one phrase."""
    parts = list(parts)
    dates = sorted({part["date"] for part in parts})
    commits = sorted({commit(part) for part in parts})
    days = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return f"{days}, commit {', '.join(commits)}; {versions(parts)}"


def when(parts: Iterable[Side]) -> str:
    """Days and commits of parts."""
    return "; ".join(sorted({f"{part['date']}, commit {commit(part)}" for part in parts}))


def versions(parts: Iterable[Side]) -> str:
    """What parts were measured with, package by package."""
    return ", ".join(f"{package} {', '.join(sorted(found))}" for package, found in packages(parts).items())


def packages(parts: Iterable[Side]) -> dict[str, set[str]]:
    """The versions of each package that parts were measured with; of our own the commit says more."""
    told: dict[str, set[str]] = {}
    for part in parts:
        for package, version in part["versions"].items():
            if package != "laprox-sglang" and version != "absent":
                told.setdefault(package, set()).add(version)
    return told


def commit(part: Side) -> str:
    return part["commit"][:7] + (" with changes" if part["dirty"] else "")
