"""What a person sees of a document: the question and the answers."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from benchmarks.quality.served import Reply
from benchmarks.quality.tasks.task import Case

# Shown are answers at this budget.
BUDGET = 0.05


def of(tokenizer: Any, case: Case, replies: Mapping[float | None, Reply]) -> dict[str, Any]:
    """As the results file holds it."""
    return {
        "kind": case.kind,
        "question": case.question,
        "answer": tokenizer.decode(case.answer),
        "all KV": tokenizer.decode(replies[None].ids),
        "pruned": tokenizer.decode(replies[BUDGET].ids),
        "budget": BUDGET,
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
