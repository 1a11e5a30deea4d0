"""Speed in the README: few figures, one for each thing a user would ask, where LaProx loses among them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.harness.markdown import table, versions, when, wrapped
from benchmarks.quality.methods import METHOD_OPTIONS
from benchmarks.quality.record.report import unlike_today
from benchmarks.quality.record.results_file import Results
from benchmarks.serving.load.workload import FP8, LAPROX, STOCK
from benchmarks.serving.record import RATIOS, by_workload
from benchmarks.tables.cells import FIGURES, beside, ratio_text
from benchmarks.tables.committed import Side, serving

# The card with most rows on the backends that servers take by themselves.
CHIP = "h200"
SPEED, FIRST_TOKEN, SLOWEST_TOKENS = "output_tok_s", "ttft_p50", "itl_p99"
SHOWN = {
    "b-full": (SPEED,),
    "f": (SPEED, FIRST_TOKEN),
    "q": (SPEED, FIRST_TOKEN),
    "ttft": (FIRST_TOKEN, SLOWEST_TOKENS),
    "lone-300": (FIRST_TOKEN,),
    "short-1k": (SPEED, FIRST_TOKEN),
}
HEAD = ("workload", "attention backends, stock / LaProx", "figure", "stock", "LaProx", "LaProx / stock")
Row = dict[str, Any]


class Line(NamedTuple):
    """One figure of both servers, and where it was measured.

    Attributes:
        cells: the last four columns of ``HEAD``.
    """

    workload: str
    what: str
    backends: str
    cells: tuple[str, str, str, str]
    sides: tuple[Side, Side]


def rows(chip: str = CHIP) -> dict[str, Row]:
    """Rows of a card with figures of both servers, each on the backend of its own choice."""
    found = by_workload(serving()[chip]["rows"])
    return {name: row for name, row in found.items() if row[STOCK] and row[LAPROX]}


def backends(row: Row) -> str:
    return f"{row[STOCK]['attention_backend']} / {row[LAPROX]['attention_backend']}"


def faster_stock(name: str) -> Side | None:
    """Stock as it is fastest on a workload, if it has to be told to take another backend for that."""
    own = rows()[name][STOCK].get(SPEED) or 0
    told = [row[STOCK] for row in serving()[CHIP]["rows"] if row["workload"] == name and row[STOCK]]
    best = max(told, key=lambda side: side.get(SPEED) or 0)
    return best if (best.get(SPEED) or 0) > own else None


def on_the_card() -> Iterator[Line]:
    """What was measured on ``CHIP``."""
    for name, row in by_name(rows()):
        for figure in SHOWN[name]:
            yield line(name, row, figure)
            if figure == SPEED and (stock := faster_stock(name)):
                ratio = ratio_text(row[LAPROX][SPEED] / stock[SPEED], more=True)
                yield line(name, row | {STOCK: stock}, SPEED, ratio)


def on_other_cards() -> Iterator[tuple[str, list[Line]]]:
    """By card: what was measured there alone, and stock with fp8 KV on the first that has it."""
    left, fp8_is_told = [name for name in SHOWN if name not in rows()], False
    for chip, content in serving().items():
        if chip == CHIP:
            continue
        fp8 = [] if fp8_is_told else list(against_fp8(content))
        only = [(name, row) for name, row in by_name(rows(chip)) if name in left]
        lines = fp8 + [line(name, row, figure) for name, row in only for figure in SHOWN[name]]
        fp8_is_told = fp8_is_told or bool(fp8)
        left = [name for name in left if name not in dict(only)]
        if lines:
            yield chip, lines


def against_fp8(content: dict[str, Any]) -> Iterator[Line]:
    """LaProx beside stock with fp8 KV."""
    for name, row in by_name(by_workload(content["rows"])):
        if row.get(FP8) and row[LAPROX]:
            named = row[FP8] | {"attention_backend": f"{row[FP8]['attention_backend']} with fp8 KV"}
            yield line(name, row | {STOCK: named}, SPEED, beside(row, RATIOS[FP8], SPEED))


def by_name(found: dict[str, Row]) -> list[tuple[str, Row]]:
    """Those that are shown, in their order."""
    return [(name, found[name]) for name in SHOWN if name in found]


def line(name: str, row: Row, figure: str, ratio: str | None = None) -> Line:
    """
    Args:
        ratio: where it is not of the row's own two servers.
    """
    stock, laprox = row[STOCK], row[LAPROX]
    ratio = beside(row, RATIOS[STOCK], figure) if ratio is None else ratio
    about = FIGURES[figure]
    cells = (about.label, about.text(stock.get(figure)), about.text(laprox.get(figure)), ratio)
    return Line(name, row["what"], backends(row), cells, (stock, laprox))


def cells_of(lines: list[Line]) -> list[tuple[str, ...]]:
    """A row for each line; workload and backends where they change."""
    cells: list[tuple[str, ...]] = []
    before = "", ""
    for one in lines:
        workload = "" if one.workload == before[0] else f"({one.workload}) {one.what}"
        named = "" if (one.workload, one.backends) == before else one.backends
        cells.append((workload, named, *one.cells))
        before = one.workload, one.backends
    return cells


def against_stock() -> str:
    """The README's table of speed, card by card."""
    cells: list[tuple[str, ...]] = []
    for number, (chip, lines) in enumerate(by_card().items()):
        only = "; what was not measured above" if number else ""
        cells += [(f"*{serving()[chip]['chip']}{only}*", *[""] * (len(HEAD) - 1)), *cells_of(lines)]
    return table(HEAD, cells, right=3)


def by_card() -> dict[str, list[Line]]:
    """What is shown, ``CHIP`` first."""
    return {CHIP: list(on_the_card())} | dict(on_other_cards())


def measured() -> dict[str, list[Side]]:
    """By card: all that the table is made of."""
    return {chip: [side for one in lines for side in one.sides] for chip, lines in by_card().items()}


def sources(quality: Results) -> str:
    """Where the README's figures come from, in a block that opens on a click: the versions once."""
    parts = quality.parts
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
