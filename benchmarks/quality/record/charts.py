"""Pictures of the results: exact answers over the budget, and which cells were kept."""

import math
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.harness import pictures
from benchmarks.quality.methods import SERVED, SET_AS_WE_ARE
from benchmarks.quality.record.documents import FIRST, LATER, TURNS, find
from benchmarks.quality.record.groups import Group, groups
from benchmarks.quality.record.results_file import Results

COLOURS = {SERVED: "#1f6feb", "laprox (paper)": "#8250df", "snapkv": "#bf8700", "ada-kv": "#1a7f37"}
OTHERS = "#8c959f"
STYLES = ("-", "--", "-.", ":")
# Names in a line of the legend.
LEGEND = 6
# The last documents are the longest.
PICTURES = 3


def draw(results: Results) -> list[Path]:
    """Draws what there are rows for, beside the results file, and returns the pictures.

    Raises:
        ImportError: matplotlib is not installed.
    """
    plt = pictures.drawing()
    panels = [group for group in groups(results.rows) if group.whole.graded]
    panels.sort(key=lambda of: (of.whole.task, TURNS.index(of.whole.turn), of.whole.length))
    shown = [document for part in results.parts for document in part["shown"]][-PICTURES:]
    drawn = []
    if panels:
        columns = min(4, len(panels))
        rows = math.ceil(len(panels) / columns)
        size = 1 + 3.6 * columns, 0.6 + 3.4 * rows
        figure, axes = plt.subplots(
            rows, columns, figsize=size, squeeze=False, sharey=True, layout="constrained"
        )
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        named: dict[str, Any] = {}
        for axis, panel in zip(axes.flat, panels, strict=False):
            curves(axis, panel)
            lines, names = axis.get_legend_handles_labels()
            named |= dict(zip(names, lines, strict=True))
        for axis in axes[:, 0]:
            axis.set_ylabel("exact answers, %")
        figure.legend(named.values(), named, loc="outside lower center", ncols=LEGEND, fontsize=8)
        drawn.append((figure, "curves"))
    if shown:
        size = 9, 2.8 * len(shown)
        figure, axes = plt.subplots(len(shown), 1, figsize=size, squeeze=False, layout="constrained")
        for axis, document in zip(axes[:, 0], shown, strict=True):
            heat(axis, document)
        drawn.append((figure, "kept"))
    path = results.path
    written = [
        pictures.save(figure, path.with_name(f"{path.stem}-{what}.png"), dpi=100) for figure, what in drawn
    ]
    plt.close("all")
    return written


def curves(axis: Any, group: Group) -> None:
    whole, ticks, styles = group.whole, [100 * budget for budget in group.budgets], cycle(STYLES)
    axis.axhline(whole.percent, color="black", linewidth=1, linestyle=":", label="all KV")
    for method in dict.fromkeys(row.method for row in group.rows if row is not whole):
        rows = [row for budget in group.budgets if (row := find(group.rows, method=method, budget=budget))]
        colour = COLOURS.get(method.removesuffix(SET_AS_WE_ARE))
        # The same method with other settings has its colour and is dashed; methods in grey differ by style.
        style = ("-" if method in COLOURS else "--") if colour else next(styles)
        axis.plot(
            [100 * row.budget for row in rows], [row.percent for row in rows],
            marker="o", markersize=3, label=method, color=colour or OTHERS, linestyle=style,
            linewidth=2 if method == SERVED else 1.2, zorder=3 if method == SERVED else 2,
        )  # fmt: skip
    turn = f"{whole.turn} turn" if whole.turn in (FIRST, LATER) else whole.turn
    axis.set_title(f"{whole.task}, {whole.length:,} tokens\n{turn}", fontsize=9)
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks], fontsize=8)
    axis.minorticks_off()
    axis.set_xlabel("kept, %")
    axis.set_ylim(-2, 102)


def heat(axis: Any, document: dict[str, Any]) -> None:
    picture = axis.imshow(document["map"], aspect="auto", cmap="viridis", vmin=0, vmax=0.3)
    axis.grid(False)
    start, stop = document["map_fact"]
    axis.axvspan(start - 0.5, stop - 0.5, color="red", alpha=0.35, linewidth=0)
    title = f"{document['question']} ({document['budget']:.0%} kept; red: where the fact is)"
    axis.set_title(title, fontsize=9)
    axis.set_ylabel("layer")
    axis.set_xlabel("position / 32")
    axis.figure.colorbar(picture, ax=axis, label="share of cells kept")
