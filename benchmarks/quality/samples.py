"""What every document gave to a row, as the results file holds it, and the figures that come of it."""

import math
import struct
import zlib
from base64 import b64decode, b64encode
from statistics import fmean
from typing import Any

from benchmarks.quality.intervals import Difference, difference, difference_of_shares

Samples = dict[str, Any]
# Of one document each: a digit in ``exact``, where answers can be exact, and numbers in the others. There
# nothing is paired by what is in SUMMED: of these only sums over all documents are held.
NUMBERS = ("logprob", "kl", "erased")
SUMMED = ("kl", "erased")
HOW = "exact as one digit each, the others as float16, little-endian, through zlib, in base64; sums as sums"


def no_samples(graded: bool) -> Samples:
    """
    Args:
        graded: whether answers can be exact.
    """
    if not graded:
        return {"exact": "", **{name: [] for name in NUMBERS}}
    return {"exact": "", "logprob": [], "sums": dict.fromkeys(SUMMED, 0.0)}


def add(samples: Samples, exact: bool, numbers: dict[str, float]) -> None:
    """Adds a document."""
    for name, value in numbers.items():
        if name in samples:
            samples[name].append(half(value))
        else:
            samples["sums"][name] = round(samples["sums"][name] + value, 6)
    if "sums" in samples:
        samples["exact"] += "01"[exact]


def half(value: float) -> float:
    """As the file has it: there are tens of thousands of them, and it lies in the repository."""
    (kept,) = struct.unpack("<e", struct.pack("<e", value))
    return float(kept)


def pack(values: list[float]) -> str:
    return b64encode(zlib.compress(struct.pack(f"<{len(values)}e", *values), 9)).decode()


def unpack(text: str) -> list[float]:
    """
    Raises:
        ValueError, TypeError: it is not what ``pack`` gives.
    """
    try:
        raw = zlib.decompress(b64decode(text, validate=True))
    except zlib.error as error:
        raise ValueError(f"samples that zlib does not read: {error}") from None
    if len(raw) % 2:
        raise ValueError("half of a float16")
    return list(struct.unpack(f"<{len(raw) // 2}e", raw))


def packed(samples: Samples) -> Samples:
    return {**samples, **{name: pack(samples[name]) for name in NUMBERS if name in samples}}


def unpacked(samples: Samples) -> Samples:
    """
    Raises:
        ValueError, TypeError, KeyError: these are not what ``packed`` gives, or not of the same documents.
    """
    graded = "sums" in samples
    listed = [name for name in NUMBERS if not (graded and name in SUMMED)]
    found = {**samples, **{name: unpack(samples[name]) for name in listed}}
    counts = {len(found[name]) for name in (*listed, *(["exact"] if graded else []))}
    if graded:
        found["sums"] = {name: float(samples["sums"][name]) for name in SUMMED}
    if len(counts) != 1 or counts == {0}:
        raise ValueError("samples of different numbers of documents")
    return found


def figures(ours: Samples, theirs: Samples) -> dict[str, Any]:
    """Means of a row's samples, and the interval of what it loses against ``theirs``."""
    graded = "sums" in ours
    lost = paired(ours, theirs, "exact" if graded else "kl")

    def mean(name: str) -> float:
        return fmean(ours[name]) if name in ours else ours["sums"][name] / len(ours["exact"])

    return {
        "exact": percent(ours["exact"]) if graded else None,
        "logprob": round(mean("logprob"), 4),
        "kl": round(mean("kl"), 5),
        "erased": round(mean("erased"), 4),
        "low": finite(lost.low),
        "high": finite(lost.high),
        "prompts": len(ours["logprob"]),
    }


def paired(ours: Samples, theirs: Samples, figure: str) -> Difference:
    """Difference of two rows' samples of the same documents; exact in points.

    Raises:
        ValueError: they are not of as many documents.
    """
    mine, other = ours[figure], theirs[figure]
    if len(mine) != len(other):
        raise ValueError(f"{len(mine)} documents beside {len(other)}: these are not the same ones")
    if figure != "exact":
        return difference(mine, other)
    found = difference_of_shares(right(mine), right(other))
    return Difference(*(100 * value for value in found))


def right(exact: str) -> list[bool]:
    return [digit == "1" for digit in exact]


def percent(exact: str) -> float:
    return round(100 * exact.count("1") / len(exact), 2)


def finite(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 5)
