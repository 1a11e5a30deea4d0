"""Tables of pages, and what they say about where their figures were measured."""

from collections.abc import Iterable, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: int = 0) -> str:
    """Markdown; the last ``right`` columns are aligned to the right."""
    marks = ["---"] * (len(head) - right) + ["---:"] * right
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, marks, *rows])


def origin(parts: Iterable[dict[str, Any]]) -> str:
    """Dates, commits and versions of parts, in one phrase."""
    parts = list(parts)
    dates = sorted({part["date"] for part in parts})
    commits = sorted({commit(part) for part in parts})
    versions: dict[str, set[str]] = {}
    for part in parts:
        for package, version in part["versions"].items():
            versions.setdefault(package, set()).add(version)
    told = [
        f"{package} {', '.join(sorted(found))}"
        for package, found in versions.items()
        if package != "laprox-sglang" and found != {"absent"}
    ]
    return (
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}, commit {', '.join(commits)}; {', '.join(told)}"
    )


def commit(part: dict[str, Any]) -> str:
    return part["commit"][:7] + (" with changes" if part["dirty"] else "")
