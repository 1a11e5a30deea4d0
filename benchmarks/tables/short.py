"""The figures of README and docs: few, one for each thing a user would ask, where LaProx loses among them."""

import json
from typing import Any

from benchmarks.serving.record import RATIOS, by_workload
from benchmarks.serving.workload import BUDGET, FP8, LAPROX, STOCK
from benchmarks.tables.ablation import ablation
from benchmarks.tables.cells import FIGURES, beside, table
from benchmarks.tables.quality import markdown
from benchmarks.tables.results import RESULTS, TablesError, checks, commit, kernels, origin, serving, sides

# Cards of the record: of serving and the checks the one where all servers took their own backend.
CHIP, KERNELS_CHIP = "h100", "h200"
SHOWN = (
    ("b-full", ("output_tok_s",)),
    ("f", ("output_tok_s", "ttft_p50")),
    ("q", ("output_tok_s", "ttft_p50")),
    ("c-open", ("output_tok_s",)),
    ("d", ("output_tok_s", "ttft_p50")),
    ("ttft", ("ttft_p50",)),
    ("lone-1k", ("ttft_p50",)),
    ("short-1k", ("output_tok_s",)),
    ("e", ("output_tok_s",)),
)
HISTORIES = (1024, 8192, 32768, 131072)


def readme() -> dict[str, str]:
    return {"headline": headline(), "serving": against_stock(), "quality": first_and_later()}


def first_and_later() -> str:
    content: dict[str, Any] = json.loads((RESULTS / "quality.json").read_text())
    return markdown(content)


def on_a_gpu() -> dict[str, str]:
    return {"pruning": pruning()}


def quality() -> dict[str, str]:
    return {"needles": needles(), "ablation": ablation()}


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
        f"**{row['ratio']['output_tok_s']:.2f} times** the tokens per second and hold "
        f"{laprox['slots_mean']:,} slots instead of {stock['slots_mean']:,};\n"
        f"their first token takes {row['ratio']['ttft_p50']:.2f} times as long. "
        "[More figures, and where it loses](#speed)."
    )


def against_stock() -> str:
    shown = {name: row for name, row in rows().items() if name in dict(SHOWN)}
    fp8 = any(row.get(FP8) for row in shown.values())
    lines = []
    for name, figures in SHOWN:
        for number, figure in enumerate(figures if name in shown else ()):
            row, unit = shown[name], FIGURES[figure]
            cells = [unit.text(row[server].get(figure)) for server in (STOCK, LAPROX)]
            cells.append(beside(row, "ratio", figure))
            if fp8:
                cells += [unit.text((row.get(FP8) or {}).get(figure)), beside(row, RATIOS[FP8], figure)]
            first = (f"({name}) {row['what']}", backends(row)) if number == 0 else ("", "")
            lines.append((*first, unit.label, *cells))
    head = ["workload", "attention backends", "figure", "stock", "LaProx", "LaProx / stock"]
    head += ["stock, fp8 KV", "LaProx / fp8"] if fp8 else []
    about = (
        f"Llama-3.1-8B shapes with random weights, bf16, budget {BUDGET * 100:g} %, one "
        f"{serving()[CHIP]['chip']}, the same requests at the same times, each server with the backend named "
        f"(stock / LaProx). **Bold: LaProx is behind.** {origin(sides(shown.values()))}."
    )
    if fp8:
        backend = next(row[FP8]["attention_backend"] for row in shown.values() if row.get(FP8))
        about += f" With fp8 KV stock runs on {backend}: the fa3 at hand has no kernels for it."
    return about + "\n\n" + table(tuple(head), lines, right=len(head) - 3)


def pruning() -> str:
    """What pruning takes of a prompt, by the length of its history."""
    content = kernels(KERNELS_CHIP)
    times = {row["case"]: row["ms"] for row in content["rows"]}
    parts = ("scoring", "selecting", "packing apart", "all three, apart")
    lines = [
        (f"{tokens:,}", *(f"{times[f'{tokens} tokens, 5% kept, {part}']:.2f} ms" for part in parts))
        for tokens in HISTORIES
    ]
    head = ("tokens of history", "scoring", "selecting", "packing", "all three")
    about = f"{content['chip']}, {content['date']}, commit {commit(content)}."
    return about + "\n\n" + table(head, lines, right=4)


def needles() -> str:
    content = checks()[CHIP]
    part = content["parts"]["needles"]
    told = [row for row in content["rows"] if row["check"] == "needles" and row["what"].startswith("exact")]
    values = "; ".join(f"{row['what']}: {row['value']:.1f} %" for row in told)
    return f"{content['chip']}, {part['date']}, commit {commit(part)}: {values}."
