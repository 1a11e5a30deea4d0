"""Speed in the README: a few figures of the stack that pip installs, where LaProx loses among them."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from benchmarks.harness.markdown import table, versions, when, wrapped
from benchmarks.quality.methods import METHOD_OPTIONS
from benchmarks.quality.record.report import unlike_today
from benchmarks.quality.record.results_file import Results
from benchmarks.serving.kinds import KINDS, LAPROX, SERVERS, of_laprox, of_stock
from benchmarks.serving.record import by_workload, sglang_of
from benchmarks.tables.cells import FIGURES, ratio_text
from benchmarks.tables.committed import Side, TablesError, serving
from benchmarks.tables.load_points import again

# The card, and the versions that pip installs.
CHIP = "h200-pip"
SPEED, FIRST_TOKEN, SLOWEST_TOKENS, AGAIN = "output_tok_s", "ttft_p50", "itl_p99", "again"
# Agents at once whose histories do not fit on the card.
AGENTS, PARALLEL, LONE, SHORT = "recorded-64k-32", "f", "ttft", "e"
SHOWN = {
    AGENTS: (SPEED, FIRST_TOKEN, "interactivity_p90", AGAIN),
    PARALLEL: (SPEED, FIRST_TOKEN),
    LONE: (SLOWEST_TOKENS,),
    SHORT: (FIRST_TOKEN,),
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

    @property
    def told(self) -> str:
        """The two servers, and why one of them does not count by the rules of a point."""
        sides = zip(self.names, (self.stock, self.laprox), strict=True)
        told = ((KINDS[name].title, *(f"(*{it}*)" for it in side.get("invalid", ()))) for name, side in sides)
        return " and ".join(map(" ".join, told))


def pairs() -> dict[str, Pair]:
    """What is shown and was measured on both sides.

    Raises:
        TablesError: the two ran on several SGLangs.
    """
    rows = serving()[CHIP]["rows"]
    shown = by_workload(rows)
    found: dict[str, Pair] = {}
    for name in (name for name in SHOWN if name in shown):
        # Stock on a backend that it must be told to take is stock.
        stock = fastest([row for row in rows if row["workload"] == name], of_stock)
        laprox = fastest([shown[name]], of_laprox if "load" in shown[name] else LAPROX.__eq__)
        if stock is None or laprox is None:
            continue
        if sglang_of(stock[1]) != sglang_of(laprox[1]):
            raise TablesError(f"{name} was measured on several SGLangs")
        found[name] = Pair(
            shown[name]["what"], (stock[0], laprox[0]), of_prompts(stock[1]), of_prompts(laprox[1])
        )
    return found


def fastest(rows: list[dict[str, Any]], wanted: Callable[[str], bool]) -> tuple[str, Side] | None:
    """Of the servers that are wanted the one with the most output tokens a second."""
    sides = [(name, row.get(name) or {}) for row in rows for name in SERVERS if wanted(name)]
    measured = [(name, side) for name, side in sides if SPEED in side]
    return max(measured, key=lambda one: float(one[1][SPEED]), default=None)


def of_prompts(side: Side) -> Side:
    return side | {AGAIN: again(side)} if "computed_again" in side else side


def against_stock() -> str:
    """The README's table, and of which servers a point is."""
    cells: list[tuple[str, ...]] = []
    found = pairs()
    for name, pair in found.items():
        for number, figure in enumerate(SHOWN[name]):
            about = FIGURES[figure]
            texts = [about.text(side.get(figure)) for side in (pair.stock, pair.laprox)]
            load = "" if number else pair.what if name == AGENTS else f"({name}) {pair.what}"
            cells.append((load, about.label, *texts, ratio_text(pair.ratio(figure), bool(about.more))))
    servers = f"Recorded agents: {found[AGENTS].told}." if AGENTS in found else ""
    return "\n\n".join(filter(None, [table(HEAD, cells, right=3), wrapped(servers)]))


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
    """A sentence on what LaProx's servers kept otherwise than by today's defaults, if so."""
    return kept_unlike_today(serving()[CHIP], {pair.names[1] for pair in pairs().values()})


def kept_unlike_today(content: dict[str, Any], names: Iterable[str]) -> str:
    servers = content["servers"].get("full", {})
    given = [servers[name]["settings"].get("laprox", {}) for name in names if name in servers]
    return unlike_today(
        [{"served": {key: one[key] for key in METHOD_OPTIONS if key in one}} for one in given]
    )
