"""The results file: what every document gave, document by document, and the rows that come of it."""

import json
import math
import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.harness.files import replacing
from benchmarks.harness.provenance import chip, made_by
from benchmarks.quality.record.documents import WHAT, Outcome, Reading, Row

# A document takes a GPU a second, and writing all of them anew takes as long.
SAVE_SECONDS = 10
# Documents of a part that are shown to a person.
TRANSCRIPTS = 5


class ResultsError(ValueError):
    """The results file cannot be used; the message is one line."""


@dataclass
class Measured:
    """What one document gave.

    Attributes:
        replay: the server beside the reference, as counted in ``served.py``.
        shown: a transcript for a person, and which cells were kept.
    """

    outcomes: dict[Reading, Outcome]
    replay: dict[str, float] = field(default_factory=dict)
    shown: dict[str, Any] = field(default_factory=dict)

    def count(self, counted: dict[str, float]) -> None:
        add_up(self.replay, counted)


def add_up(counts: dict[str, float], more: dict[str, float]) -> None:
    """Of gaps the largest stays."""
    for name, value in more.items():
        before = counts.get(name, 0)
        counts[name] = max(before, value) if name == "gap" else before + value


class Results:
    """Results of one file. Who adds to it calls ``flush`` at the end; a kill loses seconds of documents."""

    def __init__(self, path: Path, quick: bool | None) -> None:
        """
        Args:
            quick: the size that is asked for; None takes that of the file.

        Raises:
            ResultsError: the file holds something else, or results of another size.
        """
        self.path, self.quick = path, bool(quick)
        self.parts: list[dict[str, Any]] = []
        self._rows: dict[tuple[Any, ...], Row] = {}
        self._saved, self._unsaved = -math.inf, False
        if path.exists():
            try:
                old = json.loads(path.read_text())
                self.quick, self.parts = old["quick"], old["parts"]
                self._rows = {row.key: row for row in map(Row.read, old["rows"])}
                counts: dict[tuple[Any, ...], int] = {}
                if any(counts.setdefault(row.documents, row.count) != row.count for row in self.rows):
                    raise ValueError("rows of the same documents have different numbers of them")
            except (ValueError, KeyError, TypeError) as error:
                raise ResultsError(f"{path} does not hold results of this benchmark ({error!r})") from None
            if quick is not None and self.quick != quick:
                raise ResultsError(f"{path} holds results with{'out' * quick} --quick: give another file")

    @property
    def rows(self) -> list[Row]:
        return list(self._rows.values())

    def part(self, name: str, model: str, served: dict[str, Any]) -> dict[str, Any]:
        """What is known of a part; ``prompts`` is how many documents it has so far.

        Args:
            served: options of the server; none where there is no server.

        Raises:
            ResultsError: its documents were measured with other options.
        """
        for part in self.parts:
            if (part["name"], part["model"]) == (name, model):
                then = part["served"]
                if then != served:
                    changed = [f"{key} {then[key]}" for key in then if served.get(key) != then[key]]
                    raise ResultsError(
                        f"{self.path} holds documents of {name!r} that were served with "
                        f"{', '.join(changed)}: give another file, or delete this one"
                    )
                return part
        part = {"name": name, "model": model, "served": served, "prompts": 0, "replay": {}, "shown": []}
        self.parts.append(part)
        return part

    def add(self, part: dict[str, Any], task: str, length: int, graded: bool, measured: Measured) -> None:
        """Adds a document.

        Args:
            graded: whether an answer can be exact in this task.

        Raises:
            ResultsError: it was read in other ways than the documents before it, or those are another
                part's. Nothing is added: a reading that one lacks would shift those behind it.
        """
        rows = {
            reading: Row.empty(task, length, reading, part["model"], graded) for reading in measured.outcomes
        }
        of = {row.documents for row in rows.values()}
        known = {key: row.count for key, row in self._rows.items() if row.documents in of}
        if any(count != part["prompts"] for count in known.values()):
            raise ResultsError(f"{part['name']}: {self.path} holds documents of it under another name")
        if known and known.keys() != {row.key for row in rows.values()}:
            raise ResultsError(f"{part['name']}: a document lacks readings of those before it, or has others")
        part["prompts"] += 1
        part |= {"chip": chip(), **made_by()}
        add_up(part["replay"], measured.replay)
        if measured.shown and len(part["shown"]) < TRANSCRIPTS:
            part["shown"].append(measured.shown)
        for reading, outcome in measured.outcomes.items():
            self._rows.setdefault(rows[reading].key, rows[reading]).add(outcome)
        self._unsaved = True
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def merge(self, other: "Results") -> None:
        """Adds everything that another file holds.

        Raises:
            ResultsError: they hold the same part, or differ in size or in what they were served with.
        """
        if other.quick != self.quick:
            raise ResultsError(f"{other.path} is of another size than a file before it (--quick)")
        for part, before in product(other.parts, self.parts):
            if part["model"] == before["model"] and part["name"] == before["name"]:
                raise ResultsError(f"{other.path} holds {part['name']!r}, and so does a file before it")
            if part["model"] == before["model"] and part["served"] != before["served"]:
                raise ResultsError(f"{other.path} was served with other options than a file before it")
        self.parts += other.parts
        self._rows |= other._rows

    def save(self) -> None:
        rows = [row.written(self._rows[row.key_of_whole]) for row in self.rows]
        head = json.dumps({"what": WHAT, "quick": self.quick}, indent=1, ensure_ascii=False)
        with replacing(self.path) as draft:
            draft.write_text(
                head.removesuffix("\n}") + f',\n "parts": {lines(self.parts)},\n "rows": {lines(rows)}\n}}\n'
            )
        self._saved, self._unsaved = time.monotonic(), False

    def flush(self) -> None:
        """Writes what was added since it was written last."""
        if self._unsaved:
            self.save()


def lines(values: list[dict[str, Any]]) -> str:
    """JSON with a line for each of them."""
    told = (json.dumps(value, ensure_ascii=False, separators=(",", ":")) for value in values)
    return "[\n  " + ",\n  ".join(told) + "\n ]" if values else "[]"
