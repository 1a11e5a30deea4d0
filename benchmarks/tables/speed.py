"""Speed in the README: a few figures of the stack that pip installs, where LaProx loses among them."""

from itertools import zip_longest
from typing import Any, NamedTuple

from benchmarks.harness.markdown import table, versions, when, wrapped
from benchmarks.quality.methods import METHOD_OPTIONS
from benchmarks.quality.record.report import unlike_today
from benchmarks.quality.record.results_file import Results
from benchmarks.serving.load.workload import LAPROX, SERVERS, STOCK
from benchmarks.serving.plots import NAMES
from benchmarks.serving.record import by_workload, sglang_of
from benchmarks.tables.cells import FIGURES, ratio_text
from benchmarks.tables.committed import Side, TablesError, serving

# The card, and the versions that pip installs.
CHIP = "h200-pip"
SPEED, FIRST_TOKEN, SLOWEST_TOKENS, AGAIN = "output_tok_s", "ttft_p50", "itl_p99", "again"
# Agents at once whose histories do not fit on the card.
AGENTS, PARALLEL, LONE, SHORT = "recorded-64k-32", "f", "ttft", "e"
SHOWN = {
    AGENTS: (SPEED, "ttft_p95", "interactivity_p90", AGAIN),
    PARALLEL: (SPEED, FIRST_TOKEN),
    LONE: (SLOWEST_TOKENS,),
    SHORT: (SPEED,),
}
HEAD = ("load", "figure", "stock", "LaProx", "LaProx / stock")


class Pair(NamedTuple):
    """Stock and LaProx under one load, each as it is fastest there.

    Attributes:
        names: of the two servers.
    """

    what: str
    names: tuple[str, str]
    stock: Side
    laprox: Side

    def ratio(self, figure: str) -> float:
        """LaProx / stock.

        Raises:
            TablesError: one of them was not measured.
        """
        stock, laprox = self.stock.get(figure), self.laprox.get(figure)
        if not stock or laprox is None:
            raise TablesError(f"the results of {CHIP} have no {figure} of {' and '.join(self.names)}")
        return float(laprox / stock)


def pairs() -> dict[str, Pair]:
    """What is shown and was measured on both sides.

    Raises:
        TablesError: the two ran on several SGLangs.
    """
    rows = by_workload(serving()[CHIP]["rows"])
    found: dict[str, Pair] = {}
    for name in (name for name in SHOWN if name in rows):
        row = rows[name]
        names = [fastest(row, kind) if "load" in row else kind for kind in (STOCK, LAPROX)]
        stock, laprox = (row.get(server) or {} for server in names)
        if SPEED not in stock or SPEED not in laprox:
            continue
        if sglang_of(stock) != sglang_of(laprox):
            raise TablesError(f"{name} was measured on several SGLangs")
        found[name] = Pair(row["what"], (names[0], names[1]), of_prompts(stock), of_prompts(laprox))
    return found


def fastest(row: dict[str, Any], kind: str) -> str:
    """Of the servers of a kind the one with the most output tokens a second."""
    speeds = {name: (row.get(name) or {}).get(SPEED, 0.0) for name in SERVERS if name.split("-")[0] == kind}
    return max(speeds, key=lambda name: float(speeds[name]))


def of_prompts(side: Side) -> Side:
    """With the share of prompt tokens that were computed again, in per cent."""
    if "computed_again" not in side:
        return side
    return side | {AGAIN: 100 * side["computed_again"] / side["prompt_tokens"]}


def against_stock() -> str:
    """The README's table."""
    cells: list[tuple[str, ...]] = []
    for name, pair in pairs().items():
        for figure, load in zip_longest(SHOWN[name], described(name, pair), fillvalue=""):
            about = FIGURES[figure]
            texts = [about.text(side.get(figure)) for side in (pair.stock, pair.laprox)]
            cells.append((load, about.label, *texts, ratio_text(pair.ratio(figure), bool(about.more))))
    return table(HEAD, cells, right=3)


def described(name: str, pair: Pair) -> list[str]:
    """A load, line by line."""
    if pair.names == (STOCK, LAPROX):
        return [f"({name}) {pair.what}"]
    sides = zip(pair.names, (pair.stock, pair.laprox), strict=True)
    servers = [f"{NAMES[server]}{', *partial*' if short(side) else ''}" for server, side in sides]
    return [pair.what, *servers]


def short(side: Side) -> bool:
    return any(str(fault).startswith("partial") for fault in side.get("invalid", ()))


def measured() -> list[Side]:
    """All that the table is made of."""
    return [side for pair in pairs().values() for side in (pair.stock, pair.laprox)]


def sources(quality: Results) -> str:
    """Where the README's figures come from, in a block that opens on a click."""
    parts, speed = quality.parts, measured()
    told = [
        f"Speed, {serving()[CHIP]['chip']}: {when(speed)}; {versions(speed)}.{served_unlike_today()}",
        f"Quality, {parts[0]['chip']}: {when(parts)}; {versions(parts)}.{unlike_today(parts)}",
    ]
    head = "<details><summary>Dates, commits and versions of these figures</summary>"
    return "\n".join([head, "", *(wrapped(text, "- ", "  ") for text in told), "", "</details>"])


def served_unlike_today() -> str:
    """A sentence on what LaProx's latest server kept otherwise than by today's defaults, if so."""
    servers = serving()[CHIP]["servers"].get("full", {})
    given = servers.get(LAPROX, {}).get("settings", {}).get("laprox", {})
    return unlike_today([{"served": {name: given[name] for name in METHOD_OPTIONS if name in given}}])
