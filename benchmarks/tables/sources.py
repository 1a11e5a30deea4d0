"""Where the README's figures come from: dates and commits table by table, the versions once."""

from benchmarks.harness.markdown import versions, when, wrapped
from benchmarks.quality.methods import METHOD_OPTIONS
from benchmarks.quality.record.report import needles_parts, unlike_today
from benchmarks.quality.record.results_file import Results
from benchmarks.tables.committed import serving
from benchmarks.tables.speed import measured


def sources(quality: Results) -> str:
    """A block that opens on a click."""
    parts = needles_parts(quality.parts)
    speed = measured()
    told = [
        f"Speed, {serving()[chip]['chip']}: {when(sides)}.{served_unlike_today(chip)}"
        for chip, sides in speed.items()
    ]
    told.append(f"Quality, {parts[0]['chip']}: {when(parts)}.{unlike_today(parts)}")
    told.append(f"All of them: {versions([*parts, *(side for sides in speed.values() for side in sides)])}.")
    head = "<details><summary>Dates, commits and versions of these figures</summary>"
    return "\n".join([head, "", *(wrapped(text, "- ", "  ") for text in told), "", "</details>"])


def served_unlike_today(chip: str) -> str:
    """A sentence on what LaProx's latest server on a card kept otherwise than by today's defaults, if so."""
    given = serving()[chip]["servers"].get("full", {}).get("laprox", {}).get("settings", {}).get("laprox", {})
    return unlike_today([{"served": {name: given[name] for name in METHOD_OPTIONS if name in given}}])
