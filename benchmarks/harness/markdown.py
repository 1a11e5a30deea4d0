"""Tables and paragraphs of pages, and what they say about where their figures were measured."""

from collections.abc import Iterable, Sequence
from textwrap import fill
from typing import Any

# Characters of a line of prose.
WIDTH = 140


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: int = 0) -> str:
    """Markdown; the last ``right`` columns are aligned to the right."""
    marks = ["---"] * (len(head) - right) + ["---:"] * right
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, marks, *rows])


def wrapped(text: str, first: str = "", then: str = "") -> str:
    """A paragraph in lines that begin with ``first`` and ``then``."""
    return fill(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=then,
        break_long_words=False,
        break_on_hyphens=False,
    )


def origin(parts: Iterable[dict[str, Any]]) -> str:
    """Dates, commits and versions of parts, in one phrase."""
    parts = list(parts)
    dates = sorted({part["date"] for part in parts})
    commits = sorted({commit(part) for part in parts})
    days = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return f"{days}, commit {', '.join(commits)}; {versions(parts)}"


def when(parts: Iterable[dict[str, Any]]) -> str:
    """Days and commits of parts."""
    return "; ".join(sorted({f"{part['date']}, commit {commit(part)}" for part in parts}))


def versions(parts: Iterable[dict[str, Any]]) -> str:
    """What parts were measured with, package by package."""
    return ", ".join(f"{package} {', '.join(sorted(found))}" for package, found in packages(parts).items())


def packages(parts: Iterable[dict[str, Any]]) -> dict[str, set[str]]:
    """The versions of each package that parts were measured with; of our own the commit says more."""
    told: dict[str, set[str]] = {}
    for part in parts:
        for package, version in part["versions"].items():
            if package != "laprox-sglang" and version != "absent":
                told.setdefault(package, set()).add(version)
    return told


def commit(part: dict[str, Any]) -> str:
    return part["commit"][:7] + (" with changes" if part["dirty"] else "")
