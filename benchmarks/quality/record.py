"""The results file: what every document gave, document by document, and the rows that come of it."""

import json
import math
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness.files import replacing
from benchmarks.harness.provenance import REVISION, chip, command, today, versions
from benchmarks.quality.cases import Outcome
from benchmarks.quality.samples import HOW, NUMBERS, add, figures, no_samples, packed, unpacked

# A document takes a GPU a second, and writing all of them anew takes as long.
SAVE_SECONDS = 10
# When a question comes.
FIRST, LATER = "first", "later"
OVER_PRUNED, UNKNOWN = "later, over the pruned KV", "question unknown"
TURNS = (FIRST, LATER, OVER_PRUNED, UNKNOWN)


class RecordError(ValueError):
    """The results file cannot be used; the message is one line."""


class Reading(NamedTuple):
    """How a prompt was read.

    Attributes:
        turn: when the question came.
        method: who chose the cells; ``all KV`` is nobody.
        budget: share of the KV that is kept.
    """

    turn: str
    method: str
    allocator: str
    budget: float


def all_kv(turn: str) -> Reading:
    return Reading(turn, "all KV", "", 1.0)


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
        merge(self.replay, counted)


def merge(counts: dict[str, float], more: dict[str, float]) -> None:
    """Adds counts up; of gaps the largest stays."""
    for name, value in more.items():
        before = counts.get(name, 0)
        counts[name] = max(before, value) if name == "gap" else before + value


class Record:
    """Results of one file. Who adds to it calls ``flush`` at the end; a kill loses seconds of documents."""

    def __init__(self, path: Path, quick: bool | None) -> None:
        """
        Args:
            quick: the size that is asked for; None takes that of the file.

        Raises:
            RecordError: the file holds something else, or results of another size.
        """
        self.path = path
        self.parts: list[dict[str, Any]] = []
        self.quick = bool(quick)
        self._saved, self._unsaved = -math.inf, False
        if path.exists():
            try:
                old = json.loads(path.read_text())
                self.quick = old["quick"]
                self.parts = old["parts"]
                self._samples = {
                    key(row): {**row, "samples": unpacked(row["samples"])} for row in old["rows"]
                }
                check_documents(self._samples.values())
            except (ValueError, KeyError, TypeError) as error:
                raise RecordError(f"{path} does not hold results of this benchmark ({error!r})") from None
            if quick is not None and self.quick != quick:
                raise RecordError(f"{path} holds results with{'out' * quick} --quick: give another file")
        else:
            self._samples = {}

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [
            row | figures(row["samples"], self._samples[key(row | all_kv(row["turn"])._asdict())]["samples"])
            for row in self._samples.values()
        ]

    def part(self, name: str, model: str, served: dict[str, Any]) -> dict[str, Any]:
        """What is known of a part; ``prompts`` is how many documents it has so far.

        Args:
            served: options of the server; none where there is no server.

        Raises:
            RecordError: its documents were measured with other options.
        """
        for part in self.parts:
            if (part["name"], part["model"]) == (name, model):
                then = part["served"]
                if then != served:
                    changed = [f"{key} {then[key]}" for key in then if served.get(key) != then[key]]
                    raise RecordError(
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
            RecordError: it was read in other ways than the documents before it. Nothing is added: a reading
                that one lacks would shift those behind it.
        """
        heads = {
            reading: {"task": task, "length": length, **reading._asdict(), "model": part["model"]}
            for reading in measured.outcomes
        }
        given = {key(head) for head in heads.values()}
        of = {documents_of(head) for head in heads.values()}
        known = {each for each, row in self._samples.items() if documents_of(row) in of}
        if known and known != given:
            raise RecordError(f"{part['name']}: a document lacks readings of those before it, or has others")
        part["prompts"] += 1
        part |= {"chip": chip(), "versions": versions(), "date": today(), "command": command(), **REVISION}
        merge(part["replay"], measured.replay)
        if measured.shown:
            part["shown"].append(measured.shown)
        for reading, outcome in measured.outcomes.items():
            head = heads[reading]
            row = self._samples.setdefault(key(head), head | {"samples": no_samples(graded)})
            add(row["samples"], outcome.exact, {name: getattr(outcome, name) for name in NUMBERS})
        self._unsaved = True
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def take(self, other: "Record") -> None:
        """Adds the parts of another file, none of which is here."""
        self.parts += other.parts
        self._samples |= other._samples

    @property
    def content(self) -> dict[str, Any]:
        # The samples last: a reader wants the figures first.
        rows = [{**without(row, "samples"), "samples": row["samples"]} for row in self.rows]
        return {"what": WHAT, "quick": self.quick, "parts": self.parts, "rows": rows}

    def save(self) -> None:
        content = self.content
        for row in content["rows"]:
            row["samples"] = packed(row["samples"])
        with replacing(self.path) as draft:
            draft.write_text(dumps(content))
        self._saved, self._unsaved = time.monotonic(), False

    def flush(self) -> None:
        """Writes what was added since it was written last."""
        if self._unsaved:
            self.save()


WHAT = {
    "exact": "share of the answers that are right in every token, in per cent",
    "logprob": "of the right answer, mean over its tokens",
    "kl": "from the model with all KV, mean over the tokens that read kept cells",
    "erased": "share of the prompt's tokens that no head of any layer keeps",
    "low, high": "95 % interval of the paired difference to all KV in the same turn: of exact in points "
    "(Tango) where answers can be exact, else of kl (Student)",
    "samples": f"the same of every document, in order; {HOW}",
}


def without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


def documents_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """Which documents a row is of."""
    return tuple(row[name] for name in ("task", "length", "turn", "model"))


def check_documents(rows: Iterable[dict[str, Any]]) -> None:
    """
    Raises:
        ValueError: rows of the same documents have different numbers of them.
    """
    counts: dict[tuple[Any, ...], set[int]] = {}
    for row in rows:
        counts.setdefault(documents_of(row), set()).add(len(row["samples"]["logprob"]))
    if any(len(found) > 1 for found in counts.values()):
        raise ValueError("rows of the same documents have different numbers of them")


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("task", "length", "turn", "method", "allocator", "budget", "model"))


def dumps(content: dict[str, Any]) -> str:
    """JSON with a line for every innermost list, and for every row."""

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    head = json.dumps(without(content, "rows"), indent=1, ensure_ascii=False)
    head = re.sub(r"\[\n[^\[\]{}]*\n *\]", lambda found: line(json.loads(found[0])), head).removesuffix("\n}")
    rows = ",\n  ".join(map(line, content["rows"]))
    return f'{head},\n "rows": [\n  {rows}\n ]\n}}\n'


def row_of(rows: Sequence[dict[str, Any]], **wanted: Any) -> dict[str, Any] | None:
    """The first row that is as wanted."""
    return next((row for row in rows if all(row[name] == value for name, value in wanted.items())), None)
