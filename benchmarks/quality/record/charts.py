"""The picture of the results: exact answers over the budget, models side by side."""

from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.harness import pictures
from benchmarks.quality.methods import SERVED, SET_AS_WE_ARE
from benchmarks.quality.record.documents import FIRST, LATER, TURNS, find
from benchmarks.quality.record.groups import Group, all_tasks
from benchmarks.quality.record.results_file import Results

COLOURS = {SERVED: "#1f6feb", "laprox (paper)": "#8250df", "snapkv": "#bf8700", "ada-kv": "#1a7f37"}
OTHERS = "#8c959f"
STYLES = ("-", "--", "-.", ":")
# Names in a line of the legend.
LEGEND = 6


def draw(results: Results) -> list[Path]:
    """Draws what there are rows for, beside the results file, and returns the picture.

    Raises:
        ImportError: matplotlib is not installed.
    """
    plt = pictures.drawing()
    panels = {(group.whole.turn, group.whole.model): group for group in all_tasks(results.rows)}
    if not panels:
        return []
    turns = sorted({turn for turn, _ in panels}, key=TURNS.index)
    models = list(dict.fromkeys(model for _, model in panels))
    size = 1 + 3.6 * len(models), 0.6 + 3.2 * len(turns)
    figure, axes = plt.subplots(
        len(turns), len(models), figsize=size, squeeze=False, sharey=True, layout="constrained"
    )
    named: dict[str, Any] = {}
    for turn, of_turn in zip(turns, axes, strict=True):
        of_turn[0].set_ylabel(f"{turn} turn\n" * (turn in (FIRST, LATER)) + "exact answers, %")
        for model, axis in zip(models, of_turn, strict=True):
            if (group := panels.get((turn, model))) is None:
                axis.set_axis_off()
                continue
            curves(axis, group)
            lines, names = axis.get_legend_handles_labels()
            named |= dict(zip(names, lines, strict=True))
    figure.legend(named.values(), named, loc="outside lower center", ncols=LEGEND, fontsize=8)
    written = pictures.save(figure, results.path.with_name(f"{results.path.stem}-curves.png"), dpi=100)
    plt.close("all")
    return [written]


def curves(axis: Any, group: Group) -> None:
    whole, ticks, styles = group.whole, [100 * budget for budget in group.budgets], cycle(STYLES)
    axis.axhline(whole.percent, color="black", linewidth=1, linestyle=":", label="all KV")
    for method in group.methods:
        rows = [row for budget in group.budgets if (row := find(group.rows, method=method, budget=budget))]
        colour = COLOURS.get(method.removesuffix(SET_AS_WE_ARE))
        # The same method with other settings has its colour and is dashed; methods in grey differ by style.
        style = ("-" if method in COLOURS else "--") if colour else next(styles)
        axis.plot(
            [100 * row.budget for row in rows], [row.percent for row in rows],
            marker="o", markersize=3, label=method, color=colour or OTHERS, linestyle=style,
            linewidth=2 if method == SERVED else 1.2, zorder=3 if method == SERVED else 2,
        )  # fmt: skip
    axis.set_title(f"{whole.model}\n{whole.task}, {whole.count:,} documents", fontsize=8)
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks], fontsize=8)
    axis.minorticks_off()
    axis.set_xlabel("kept, %")
    axis.set_ylim(-2, 102)
