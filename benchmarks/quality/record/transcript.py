"""What a person sees of a document: the question, the answers, and what was kept around the fact."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from benchmarks.quality.served import Reply
from benchmarks.quality.tasks.task import Case

# Shown are answers at this budget, and this many tokens around the fact.
BUDGET, AROUND = 0.05, 10
# Positions of a column in the picture of kept cells.
COLUMN = 32
# By the least share of its cells that is kept: the mark behind a token, its colour, and what that says.
LEVELS = (
    (0.0, "·", "bright_black", "kept by no head"),
    (0.001, "▁", "red", "under 2 % of the cells"),
    (0.02, "▃", "yellow", "under 10 %"),
    (0.1, "▆", "green", "under 50 %"),
    (0.5, "█", "green", "more"),
)


def of(tokenizer: Any, case: Case, replies: Mapping[float | None, Reply]) -> dict[str, Any]:
    """As the results file holds it; numbers are shares of the cells that were kept."""
    decode, pruned, fact = tokenizer.decode, replies[BUDGET], case.fact
    if pruned.cells is None:
        return {}
    by_layer = pruned.cells.float().mean(dim=1)
    shares = by_layer.mean(dim=0)
    around = range(max(0, fact.start - AROUND), min(len(case.prompt), fact.stop + AROUND))
    columns = [column.mean(dim=1).tolist() for column in by_layer.split(COLUMN, dim=1)]
    return {
        "kind": case.kind,
        "question": case.question,
        "answer": decode(case.answer),
        "all KV": decode(replies[None].ids),
        "pruned": decode(pruned.ids),
        "budget": BUDGET,
        "tokens": [decode([case.prompt[place]]) for place in around],
        "kept": [round(shares[place].item(), 3) for place in around],
        "fact": [fact.start - around.start, fact.stop - around.start],
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
    console.print(around_fact(shown))
    console.print(
        "           " + " ".join(f"{mark} {meaning}" for _, mark, _, meaning in LEVELS), style="dim"
    )
    console.print()


def around_fact(shown: dict[str, Any]) -> Text:
    """The fact, underlined, and the tokens around it, each with the share of its cells that was kept."""
    text = Text("kept       ")
    start, stop = shown["fact"]
    for index, (token, share) in enumerate(zip(shown["tokens"], shown["kept"], strict=True)):
        _, mark, colour, _ = next(level for level in reversed(LEVELS) if share >= level[0])
        text.append(token.replace("\n", "↵"), style="underline" if start <= index < stop else "")
        text.append(mark, style=colour)
    return text
