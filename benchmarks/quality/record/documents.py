"""What the documents of a task gave in one reading, and the figures that come of it."""

import math
import zlib
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, NamedTuple, Self

import numpy as np

from benchmarks.quality.record.intervals import Difference, difference, difference_of_shares

# When a question comes.
FIRST, LATER = "first", "later"
OVER_PRUNED, UNKNOWN = "later, over the pruned KV", "question unknown"
TURNS = (FIRST, LATER, OVER_PRUNED, UNKNOWN)
# Behind a method's name: its server keeps KV in fp8.
IN_FP8 = ", fp8 KV"
# Behind the name of a task: in how many bits KV is, whose rows are no others' then.
EQUAL_BYTES, FP8_TOO = " at equal bytes", " in fp8 as well"
# Where answers can be exact nothing is paired by those in SUMMED: only their sums are held.
NUMBERS, SUMMED = ("logprob", "kl", "erased"), ("kl", "erased")


class Outcome(NamedTuple):
    """
    Attributes:
        exact: all tokens of the answer are the most likely ones, each given those before it: what greedy
            decoding would say.
        logprob: of the answer, mean over its tokens.
        kl: from the model with all KV to the model at hand, mean over the tokens that read kept cells.
        erased: share of the prompt's tokens that no head of any layer keeps.
    """

    exact: bool
    logprob: float
    kl: float
    erased: float


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
class Row:
    """Documents of one task and length in one reading, in order.

    Attributes:
        length: in tokens; in words where several are joined.
        exact: a digit for each document; empty where answers cannot be exact.
        numbers: by name a number for each document, as exact as the file holds it.
        sums: by name over all documents.
    """

    task: str
    length: int | str
    turn: str
    method: str
    allocator: str
    budget: float
    model: str
    exact: str = ""
    numbers: dict[str, list[float]] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)

    @classmethod
    def empty(cls, task: str, length: int, reading: Reading, model: str, graded: bool) -> Self:
        summed = SUMMED if graded else ()
        numbers: dict[str, list[float]] = {name: [] for name in NUMBERS if name not in summed}
        return cls(
            task, length, **reading._asdict(), model=model, numbers=numbers, sums=dict.fromkeys(summed, 0.0)
        )

    @classmethod
    def read(cls, written: dict[str, Any]) -> Self:
        """
        Raises:
            ValueError, TypeError, KeyError: this is not what ``written`` gives.
        """
        samples = written["samples"]
        summed = SUMMED if "sums" in samples else ()
        row = cls(
            **{name: written[name] for name in HEAD},
            exact=samples["exact"],
            numbers={name: unpack(samples[name]) for name in NUMBERS if name not in summed},
            sums={name: float(samples["sums"][name]) for name in summed},
        )
        counts = {len(values) for values in (*row.numbers.values(), *([row.exact] if summed else []))}
        if len(counts) != 1 or counts == {0}:
            raise ValueError("samples of different numbers of documents")
        return row

    def written(self, whole: Self) -> dict[str, Any]:
        """As the file holds it; the samples last, as a reader wants the figures first."""
        samples = {"exact": self.exact, **{name: pack(values) for name, values in self.numbers.items()}}
        head = {name: getattr(self, name) for name in HEAD}
        return head | self.figures(whole) | {"samples": samples | ({"sums": self.sums} if self.sums else {})}

    @property
    def graded(self) -> bool:
        return bool(self.exact)

    @property
    def count(self) -> int:
        return len(self.numbers["logprob"])

    @property
    def documents(self) -> tuple[Any, ...]:
        """Which documents it is of, and when they were asked."""
        return self.task, self.length, self.turn, self.model

    @property
    def key(self) -> tuple[Any, ...]:
        return (*self.documents, self.method, self.allocator, self.budget)

    @property
    def key_of_whole(self) -> tuple[Any, ...]:
        """Key of the row of the same documents with all KV."""
        return (*self.documents, *all_kv(self.turn)[1:])

    @property
    def percent(self) -> float:
        return round(100 * self.exact.count("1") / self.count, 2)

    def add(self, outcome: Outcome) -> None:
        """Adds a document."""
        for name, values in self.numbers.items():
            values.append(half(getattr(outcome, name)))
        for name in self.sums:
            self.sums[name] = round(self.sums[name] + getattr(outcome, name), 6)
        if self.sums:
            self.exact += "01"[outcome.exact]

    def first(self, count: int) -> Self:
        """Its first documents; of them nothing is known that is only held as a sum."""
        numbers = {name: values[:count] for name, values in self.numbers.items()}
        return replace(self, exact=self.exact[:count], numbers=numbers, sums={})

    def figures(self, whole: Self) -> dict[str, Any]:
        """Means, and the interval of what is lost against ``whole``."""
        lost = self.minus(whole, "exact" if self.graded else "kl")

        def mean(name: str, digits: int) -> float:
            found = fmean(self.numbers[name]) if name in self.numbers else self.sums[name] / self.count
            return round(found, digits)

        return {
            "exact": self.percent if self.graded else None,
            **{name: mean(name, digits) for name, digits in (("logprob", 4), ("kl", 5), ("erased", 4))},
            "low": None if math.isnan(lost.low) else round(lost.low, 5),
            "high": None if math.isnan(lost.high) else round(lost.high, 5),
            "prompts": self.count,
        }

    def minus(self, other: Self, figure: str) -> Difference:
        """The paired difference of the same documents; of ``exact`` in points.

        Raises:
            ValueError: they are not of as many documents.
        """
        if self.count != other.count:
            raise ValueError(f"{self.count} documents beside {other.count}: these are not the same ones")
        if figure != "exact":
            return difference(self.numbers[figure], other.numbers[figure])
        found = difference_of_shares(*([digit == "1" for digit in row.exact] for row in (self, other)))
        return Difference(*(100 * value for value in found))


HEAD = ("task", "length", "turn", "method", "allocator", "budget", "model")
WHAT = {
    "exact": "share of the answers that are right in every token, in per cent",
    "logprob": "of the right answer, mean over its tokens",
    "kl": "from the model with all KV, mean over the tokens that read kept cells",
    "erased": "share of the prompt's tokens that no head of any layer keeps",
    "low, high": "95 % interval of the paired difference to all KV in the same turn: of exact in points "
    "(Tango) where answers can be exact, else of kl (Student)",
    "samples": "the same of every document, in order; exact as one digit each, the others as float16, "
    "little-endian, through zlib, in base64; sums as sums",
}


def joined(rows: Sequence[Row]) -> Row:
    """One row of the documents of several lengths."""
    sums = [row.sums for row in rows]
    return replace(
        rows[0],
        length=" and ".join(dict.fromkeys(map(lengths, rows))),
        exact="".join(row.exact for row in rows),
        numbers={name: [value for row in rows for value in row.numbers[name]] for name in rows[0].numbers},
        sums={name: sum(of[name] for of in sums) for name in rows[0].sums},
    )


def lengths(row: Row) -> str:
    return row.length if isinstance(row.length, str) else f"{row.length:,}"


def find(rows: Sequence[Row], **wanted: Any) -> Row | None:
    """The first row that is as wanted."""
    return next(
        (row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())), None
    )


def half(value: float) -> float:
    """As the file has it: there are tens of thousands of them, and it lies in the repository."""
    return float(np.float16(value))


def pack(values: list[float]) -> str:
    return b64encode(zlib.compress(np.array(values, "<f2").tobytes(), 9)).decode()


def unpack(text: str) -> list[float]:
    """
    Raises:
        ValueError, TypeError: it is not what ``pack`` gives.
    """
    try:
        return [
            float(value) for value in np.frombuffer(zlib.decompress(b64decode(text, validate=True)), "<f2")
        ]
    except zlib.error as error:
        raise ValueError(f"samples that zlib does not read: {error}") from None
