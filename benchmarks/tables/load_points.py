"""Agents at once, and conversations at a rate: the points that were measured, server by server."""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.harness.markdown import origin, table, when, wrapped
from benchmarks.serving.load.workload import SERVERS
from benchmarks.serving.plots import NAMES
from benchmarks.tables.committed import Side, serving

HEAD = (
    "server",
    "output tokens/s",
    "first token, median",
    "95 %",
    "between tokens",
    "a user's tokens/s, 90 % have more",
    "computed again",
    "requests",
)
# Of the README.
POINT = "recorded-64k-32"
Row = dict[str, Any]


def all_points() -> str:
    """All points of all cards."""
    told = []
    for content in serving().values():
        rows = [row for row in content["rows"] if "load" in row]
        told += [point(f"{content['chip']}, ", row, origin) for row in rows]
    return "\n\n".join(told)


def readmes_point() -> str:
    """The README's."""
    for content in serving().values():
        for row in content["rows"]:
            if row["workload"] == POINT:
                return point(f"{content['chip']}, ", row, when)
    return "Recorded agents were not measured yet."


def point(chip: str, row: Row, source: Callable[[Sequence[Side]], str]) -> str:
    sides = {server: row[server] for server in SERVERS if row.get(server)}
    measured = [side for side in sides.values() if "commit" in side]
    about = wrapped(f"{chip}{row['what']} ({source(measured)}):")
    return f"{about}\n\n{table(HEAD, [cells(server, side) for server, side in sides.items()], right=7)}"


def cells(server: str, side: Side) -> tuple[str, ...]:
    name = " *".join([NAMES[server], *(f"{fault}*" for fault in side.get("invalid", ()))])
    if "failed" in side:
        return (name, f"failed: {side['failed']}", *[""] * (len(HEAD) - 2))
    again = f"{100 * side['computed_again'] / side['prompt_tokens']:.0f} %"
    return (
        name,
        f"{side['output_tok_s']:,.0f}",
        *(f"{side[key] / 1000:.1f} s" for key in ("ttft_p50", "ttft_p95")),
        f"{side['itl_p50']:.1f} ms",
        f"{side['interactivity_p90']:.1f}",
        again,
        f"{side['requests']:,}",
    )
