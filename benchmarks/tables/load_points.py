"""Agents at once, and conversations at a rate: the points that were measured, server by server."""

import re
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

from benchmarks.harness.markdown import origin, table, when, wrapped
from benchmarks.serving.load.workload import SERVERS
from benchmarks.serving.plots import NAMES
from benchmarks.tables.cells import bold
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
# Of the README: what was measured of its curve, but for a tier that the other policy of stock's beats.
CURVE, BEATEN = "recorded-64k", "stock-host"
Row = dict[str, Any]


def all_points() -> str:
    """All points of all cards."""
    told = []
    for content in serving().values():
        rows = [row for row in content["rows"] if "load" in row]
        told += [point(f"{content['chip']}, ", row, origin) for row in rows]
    return "\n\n".join(told)


def readmes_points() -> str:
    """The README's, of the first card that has any; bold is what LaProx is behind in."""
    for content in serving().values():
        rows = [row for row in content["rows"] if row.get("load", {}).get("curve") == CURVE]
        told, measured = [], []
        for row in sorted(rows, key=lambda row: row["load"]["at"]):
            sides = {server: row[server] for server in SERVERS if row.get(server) and server != BEATEN}
            measured += [side for side in sides.values() if "commit" in side]
            rivals = [
                side for server, side in sides.items() if server.startswith("stock") and "failed" not in side
            ]
            told += [
                (
                    f"{row['load']['at']:g}",
                    *brief(cells(server, side, () if server.startswith("stock") else rivals)),
                )
                for server, side in sides.items()
            ]
        if told:
            what = rows[0]["what"].rpartition(", ")[0]
            about = wrapped(f"{content['chip']}, {what} ({when(measured)}):")
            return f"{about}\n\n{table(('at once', *HEAD), told, right=7)}"
    return "Recorded agents were not measured yet."


def point(chip: str, row: Row, source: Callable[[Sequence[Side]], str]) -> str:
    sides = {server: row[server] for server in SERVERS if row.get(server)}
    measured = [side for side in sides.values() if "commit" in side]
    about = wrapped(f"{chip}{row['what']} ({source(measured)}):")
    return f"{about}\n\n{table(HEAD, [cells(server, side) for server, side in sides.items()], right=7)}"


def cells(server: str, side: Side, rivals: Sequence[Side] = ()) -> tuple[str, ...]:
    """A server's row; bold where one of the rivals is better."""
    name = " *".join([NAMES[server], *(f"{fault}*" for fault in side.get("invalid", ()))])
    if "failed" in side:
        return (name, f"failed: {side['failed']}", *[""] * (len(HEAD) - 2))

    def cell(text: str, figure: Callable[[Side], float], more: bool = False) -> str:
        others = [figure(rival) for rival in rivals]
        behind = any(other > figure(side) if more else other < figure(side) for other in others)
        return bold(text, behind)

    return (
        name,
        cell(f"{side['output_tok_s']:,.0f}", itemgetter("output_tok_s"), more=True),
        cell(f"{side['ttft_p50'] / 1000:.1f} s", itemgetter("ttft_p50")),
        cell(f"{side['ttft_p95'] / 1000:.1f} s", itemgetter("ttft_p95")),
        cell(f"{side['itl_p50']:.1f} ms", itemgetter("itl_p50")),
        cell(f"{side['interactivity_p90']:.1f}", itemgetter("interactivity_p90"), more=True),
        cell(f"{100 * again(side):.0f} %", again),
        f"{side['requests']:,}",
    )


def brief(told: tuple[str, ...]) -> tuple[str, ...]:
    """How long a point is partial, other pages say."""
    return (re.sub(r"\*partial: .*?\*", "*partial*", told[0]), *told[1:])


def again(side: Side) -> float:
    share: float = side["computed_again"] / side["prompt_tokens"]
    return share
