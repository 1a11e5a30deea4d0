"""The picture of the results: exact answers over the budget, models side by side."""

from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.harness import pictures
from benchmarks.quality.methods import SERVED, SET_AS_WE_ARE
from benchmarks.quality.record.documents import FIRST, LATER, OVER_PRUNED, UNKNOWN, find
from benchmarks.quality.record.groups import Group, all_tasks
from benchmarks.quality.record.results_file import Results

COLOURS = {SERVED: "#1f6feb", "laprox (paper)": "#8250df", "snapkv": "#bf8700", "ada-kv": "#1a7f37"}
OTHERS = "#8c959f"
STYLES = ("-", "--", "-.", ":")
# Of LaProx alone where it is not the first turn.
TURN_STYLES = {LATER: "--", OVER_PRUNED: "-.", UNKNOWN: ":"}


def draw(results: Results) -> list[Path]:
    """Draws what there are rows for, beside the results file, and returns the picture.

    Raises:
        ImportError: matplotlib is not installed.
    """
    plt = pictures.drawing()
    panels: dict[str, list[Group]] = {}
    for group in all_tasks(results.rows):
        panels.setdefault(group.whole.model, []).append(group)
    if not panels:
        return []
    size = 2 + 4 * len(panels), 4.6
    figure, axes = plt.subplots(
        1, len(panels), figsize=size, squeeze=False, sharey=True, layout="constrained"
    )
    named: dict[str, Any] = {}
    for (model, of_model), axis in zip(panels.items(), axes[0], strict=True):
        for group in of_model:
            curves(axis, group)
        lines, names = axis.get_legend_handles_labels()
        named |= dict(zip(names, lines, strict=True))
        axis.set_title(f"{model}\nall tasks, {of_model[0].whole.count:,} documents", fontsize=8)
    axes[0][0].set_ylabel("exact answers, %")
    figure.legend(named.values(), named, loc="outside lower center", ncols=2 * len(panels), fontsize=8)
    written = pictures.save(figure, results.path.with_name(f"{results.path.stem}-curves.png"), dpi=100)
    plt.close("all")
    return [written]


def curves(axis: Any, group: Group) -> None:
    whole, ticks, styles = group.whole, [100 * budget for budget in group.budgets], cycle(STYLES)
    if whole.turn == FIRST:
        axis.axhline(whole.percent, color="black", linewidth=1, linestyle=":", label="all KV")
    for method in group.methods if whole.turn == FIRST else [SERVED]:
        rows = [row for budget in group.budgets if (row := find(group.rows, method=method, budget=budget))]
        colour = COLOURS.get(method.removesuffix(SET_AS_WE_ARE))
        # The same method with other settings has its colour and is dashed; methods in grey differ by style.
        style = ("-" if method in COLOURS else "--") if colour else next(styles)
        axis.plot(
            [100 * row.budget for row in rows], [row.percent for row in rows], marker="o", markersize=3,
            label=method if whole.turn == FIRST else f"{method}, {whole.turn}", color=colour or OTHERS,
            linestyle=TURN_STYLES.get(whole.turn, style), linewidth=2 if method == SERVED else 1.2,
            zorder=3 if method == SERVED else 2,
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks], fontsize=8)
    axis.minorticks_off()
    axis.set_xlabel("kept, %")
    axis.set_ylim(-2, 102)
