"""What a person sees of a document: the question, the answers, and a picture of the cells that were kept."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from benchmarks.quality.served import Reply
from benchmarks.quality.tasks.task import Case

# Shown are answers at this budget.
BUDGET = 0.05
# Positions of a column in the picture of kept cells.
COLUMN = 32


def of(tokenizer: Any, case: Case, replies: Mapping[float | None, Reply]) -> dict[str, Any]:
    """As the results file holds it; numbers are shares of the cells that were kept."""
    decode, pruned, fact = tokenizer.decode, replies[BUDGET], case.fact
    if pruned.cells is None:
        return {}
    by_layer = pruned.cells.float().mean(dim=1)
    columns = [column.mean(dim=1).tolist() for column in by_layer.split(COLUMN, dim=1)]
    return {
        "kind": case.kind,
        "question": case.question,
        "answer": decode(case.answer),
        "all KV": decode(replies[None].ids),
        "pruned": decode(pruned.ids),
        "budget": BUDGET,
        "map": [[round(value, 2) for value in layer] for layer in zip(*columns, strict=True)],
        "map_fact": [fact.start / COLUMN, fact.stop / COLUMN],
    }


def show(shown: dict[str, Any], console: Console) -> None:
    console.rule(f"[bold]{shown['kind']}", align="left")
    console.print(f"question   {shown['question']}", markup=False)
    for name, title in (("all KV", "all KV"), ("pruned", f"{shown['budget']:.0%} kept")):
        right = shown[name] == shown["answer"]
        verdict = "right" if right else f"wrong: {shown['answer'].strip()}"
        style = "green" if right else "red"
        console.print(Text(f"{title:<10} ").append(shown[name].strip(), style=style).append(f"  ({verdict})"))
    console.print()
