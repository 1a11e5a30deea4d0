"""What a person sees of a document: the question, the answers, and what was kept around the fact."""

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

# From hardly a cell to most of them; what no head keeps is struck out.
COLOURS = ((0.001, "strike bright_black"), (0.02, "red"), (0.1, "yellow"), (1.01, "green"))
# Where there is no colour.
MARKS = "·▁▃▆█"


def show(shown: dict[str, Any], console: Console) -> None:
    right = {name: shown[name] == shown["answer"] for name in ("all KV", "pruned")}
    console.rule(f"[bold]{shown['kind']}", align="left")
    console.print(f"question   {shown['question']}", markup=False)
    for name, title in (("all KV", "all KV"), ("pruned", f"{shown['budget']:.0%} kept")):
        verdict = "right" if right[name] else f"wrong: {shown['answer'].strip()}"
        style = "green" if right[name] else "red"
        console.print(Text(f"{title:<10} ").append(shown[name].strip(), style=style).append(f"  ({verdict})"))
    console.print(around(shown, console.is_terminal))
    console.print()


def around(shown: dict[str, Any], coloured: bool) -> RenderableType:
    """The fact and the tokens around it, with the share of the cells of each that were kept."""
    text = Text("kept       ")
    start, stop = shown["fact"]
    for index, (token, share) in enumerate(zip(shown["tokens"], shown["kept"], strict=True)):
        word = token.replace("\n", "↵")
        if coloured:
            underline = " underline" if start <= index < stop else ""
            text.append(word, style=colour(share) + underline)
        else:
            text.append(f"{word}{MARKS[level(share)]}")
    legend = " ".join(f"{mark} {what}" for mark, what in zip(MARKS, LEGEND, strict=True))
    return Group(text, Text(f"           {LEGEND_COLOURED if coloured else legend}", style="dim"))


LEGEND = ("kept by no head", "under 2 % of the cells", "under 10 %", "under 50 %", "more")
LEGEND_COLOURED = "struck out: kept by no head; red: under 2 % of its cells; yellow: under 10 %; green: more"


def level(share: float) -> int:
    return sum(share >= least for least in (0.001, 0.02, 0.1, 0.5))


def colour(share: float) -> str:
    return next(style for below, style in COLOURS if share < below)
