"""Agents at once, and conversations at a rate: the points that were measured, server by server."""

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

from benchmarks.harness.markdown import origin, table, wrapped
from benchmarks.serving.kinds import KINDS, SERVERS, of_stock
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
Row = dict[str, Any]


def all_points() -> str:
    """All points of all cards; bold is what LaProx is behind some stock in."""
    told = []
    for content in serving().values():
        told += [point(content["chip"], row) for row in content["rows"] if "load" in row]
    return "\n\n".join(told)


def point(chip: str, row: Row) -> str:
    sides = {server: row[server] for server in SERVERS if row.get(server)}
    stock = [side for server, side in sides.items() if of_stock(server) and "failed" not in side]
    told = [cells(server, side, () if of_stock(server) else stock) for server, side in sides.items()]
    measured = [side for side in sides.values() if "commit" in side]
    about = wrapped(f"{chip}, {row['what']} ({origin(measured)}):")
    return f"{about}\n\n{table(HEAD, told, right=7)}"


def cells(server: str, side: Side, rivals: Sequence[Side]) -> tuple[str, ...]:
    """A server's row; bold where one of the rivals is better."""
    name = " *".join([KINDS[server].title, *(f"{fault}*" for fault in side.get("invalid", ()))])
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
        cell(f"{again(side):.0f} %", again),
        f"{side['requests']:,}",
    )


def again(side: Side) -> float:
    """Per cent of the prompt tokens."""
    share: float = side["computed_again"] / side["prompt_tokens"]
    return 100 * share
