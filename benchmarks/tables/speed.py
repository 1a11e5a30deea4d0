"""Speed in the README: few figures, one for each thing a user would ask, where LaProx loses among them."""

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.harness.markdown import commit, origin, table
from benchmarks.serving.record import RATIOS, by_workload
from benchmarks.serving.workload import BUDGET, FP8, LAPROX, STOCK
from benchmarks.tables.cells import FIGURES, beside
from benchmarks.tables.committed import Side, TablesError, serving, sides

# The card with most rows on the backends that servers take by themselves.
CHIP = "h200"
SPEED = "output_tok_s"
SHOWN = (
    ("b-full", (SPEED,)),
    ("f", (SPEED, "ttft_p50")),
    ("q", (SPEED, "ttft_p50")),
    ("c-open", (SPEED,)),
    ("d", (SPEED, "ttft_p50")),
    ("ttft", ("ttft_p50",)),
    ("lone-1k", ("ttft_p50",)),
    ("lone-300", ("ttft_p50",)),
    ("short-1k", (SPEED, "ttft_p50")),
    ("e", (SPEED,)),
)


def rows() -> dict[str, dict[str, Any]]:
    """Rows with figures of both sides."""
    found = by_workload(serving()[CHIP]["rows"])
    return {name: row for name, row in found.items() if row[STOCK] and row[LAPROX]}


def backends(row: dict[str, Any]) -> str:
    return f"{row[STOCK]['attention_backend']} / {row[LAPROX]['attention_backend']}"


def headline() -> str:
    if (row := rows().get("f")) is None:
        raise TablesError(
            f"the results of {CHIP} have no row f of stock and LaProx, which the headline is of"
        )
    stock, laprox = row[STOCK], row[LAPROX]
    turns = len(laprox["ttft_p50_by_turn"])
    return (
        f"On an {CHIP.upper()}, keeping {BUDGET * 100:g} % of each prompt, against stock SGLang "
        f"(attention backends {backends(row)}; 8B shapes with random weights):\n"
        f"{laprox['requests'] // turns} agents of {turns} turns run at "
        f"**{row['ratio'][SPEED]:.2f} times** the tokens per second and hold "
        f"{laprox['slots_mean']:,} slots instead of {stock['slots_mean']:,};\n"
        f"their first token takes {row['ratio']['ttft_p50']:.2f} times as long. "
        "[More figures, and where it loses](#speed)."
    )


def against_stock() -> str:
    shown = {name: row for name, row in rows().items() if name in dict(SHOWN)}
    lines = []
    for name, figures in SHOWN:
        for number, figure in enumerate(figures if name in shown else ()):
            row, unit = shown[name], FIGURES[figure]
            cells = [unit.text(row[server].get(figure)) for server in (STOCK, LAPROX)]
            first = (f"({name}) {row['what']}", backends(row)) if number == 0 else ("", "")
            lines.append((*first, unit.label, *cells, beside(row, RATIOS[STOCK], figure)))
    head = ("workload", "attention backends", "figure", "stock", "LaProx", "LaProx / stock")
    about = (
        f"Llama-3.1-8B shapes with random weights, bf16, budget {BUDGET * 100:g} %, one "
        f"{serving()[CHIP]['chip']}, the same requests at the same times, each server with the backend named "
        f"(stock / LaProx). **Bold: LaProx is behind.** Of a row that was run several times a ratio is the "
        f"median. {origin(sides(shown.values()))}."
    )
    about = " ".join(filter(None, (about, faster(), against_fp8(), on_other_cards(shown))))
    return about + "\n\n" + table(head, lines, right=3)


def faster() -> str | None:
    """Rows in which stock, told to take another backend, has a higher speed than with its own choice."""
    own = by_workload(serving()[CHIP]["rows"])
    found = []
    for row in serving()[CHIP]["rows"]:
        stock, usual = row[STOCK], own[row["workload"]]
        if stock and row["workload"] in dict(SHOWN) and usual[LAPROX] and usual[STOCK]:
            speed, laprox = stock.get(SPEED) or 0, usual[LAPROX].get(SPEED)
            if speed > (usual[STOCK].get(SPEED) or 0):
                text = f"({row['workload']}) {FIGURES[SPEED].text(speed)} on {stock['attention_backend']}"
                found.append((f"{text}, LaProx / that {laprox / speed:.2f}", stock))
    if not found:
        return None
    told, made = zip(*found, strict=True)
    return (
        f"In some rows stock is faster if told to take another backend than its default, "
        f"{FIGURES[SPEED].label}: {'; '.join(told)} ({when(made)})."
    )


def against_fp8() -> str | None:
    """LaProx beside stock with fp8 KV, on the first card where both were measured."""
    for content in serving().values():
        found = by_workload(content["rows"])
        both = [(name, row) for name, _ in SHOWN if (row := found.get(name)) and row.get(FP8) and row[LAPROX]]
        if both:
            told = "; ".join(beside_fp8(name, row) for name, row in both)
            one = both[0][1]
            return (
                f"Stock with fp8 KV on {one[FP8]['attention_backend']}, for the fa3 at hand has no kernels "
                f"for it ({when(row[FP8] for _, row in both)}), and LaProx on "
                f"{one[LAPROX]['attention_backend']} ({when(row[LAPROX] for _, row in both)}), both on "
                f"{content['chip']}, {FIGURES[SPEED].label}: {told}."
            )
    return None


def on_other_cards(shown: Mapping[str, Any]) -> str | None:
    """Rows that are to be shown and were measured on other cards only."""
    left, told = [name for name, _ in SHOWN if name not in shown], []
    for content in serving().values():
        found = by_workload(content["rows"])
        both = {name: row for name in left if (row := found.get(name)) and row[STOCK] and row[LAPROX]}
        for name, row in both.items():
            left.remove(name)
            made = f"{content['chip']}, {backends(row)}; {when((row[STOCK], row[LAPROX]))}"
            told.append(f"({name}) {row['what']} ({made}): {in_words(name, row)}")
    return f"On another card only (stock, LaProx, LaProx / stock): {'; '.join(told)}." if told else None


def in_words(name: str, row: dict[str, Any]) -> str:
    told = []
    for figure in dict(SHOWN)[name]:
        stock, laprox = (FIGURES[figure].text(row[server].get(figure)) for server in (STOCK, LAPROX))
        told.append(f"{FIGURES[figure].label} {stock}, {laprox}, {beside(row, RATIOS[STOCK], figure)}")
    return " and ".join(told)


def beside_fp8(name: str, row: dict[str, Any]) -> str:
    fp8, laprox = (FIGURES[SPEED].text(row[server][SPEED]) for server in (FP8, LAPROX))
    return f"({name}) {fp8} and {laprox}, LaProx / fp8 {beside(row, RATIOS[FP8], SPEED)}"


def when(parts: Iterable[Side]) -> str:
    """Days and commits of parts."""
    return ", ".join(sorted({f"{part['date']}, commit {commit(part)}" for part in parts}))
