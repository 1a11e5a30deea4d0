"""Pictures of the results: exact answers over the budget, and which cells were kept."""

from pathlib import Path
from typing import Any

from benchmarks.quality.methods import SERVED

COLOURS = {SERVED: "#1f6feb", "snapkv": "#bf8700", "ada-kv": "#1a7f37", "laprox (paper)": "#8250df"}
OTHERS = "#b0b6be"


def draw(content: dict[str, Any], path: Path) -> list[Path]:
    """Draws what there are rows for, beside the results file, and returns the pictures.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10})
    graded = [row for row in content["rows"] if row["exact"] is not None]
    panels = list(dict.fromkeys((row["task"], row["length"], row["turn"], row["model"]) for row in graded))
    pictures = []
    if panels:
        figure, axes = plt.subplots(
            1, len(panels), figsize=(1 + 4 * len(panels), 4.2), squeeze=False, sharey=True
        )
        for axis, panel in zip(axes[0], panels, strict=True):
            curves(axis, panel, graded)
        axes[0][0].set_ylabel("exact answers, %")
        pictures.append(save(figure, path, "curves"))
    shown = [document for part in content["parts"] for document in part["shown"]]
    if shown:
        figure, axes = plt.subplots(len(shown[:3]), 1, figsize=(9, 2.8 * len(shown[:3])), squeeze=False)
        for axis, document in zip(axes[:, 0], shown, strict=False):
            heat(axis, document)
        pictures.append(save(figure, path, "kept"))
    plt.close("all")
    return pictures


def curves(axis: Any, panel: tuple[Any, ...], rows: list[dict[str, Any]]) -> None:
    ours = [row for row in rows if (row["task"], row["length"], row["turn"], row["model"]) == panel]
    whole = next(row for row in ours if row["budget"] == 1)
    axis.axhline(whole["exact"], color="black", linewidth=1, linestyle=":", label="all KV")
    for method in dict.fromkeys(row["method"] for row in ours if row["budget"] < 1):
        points = sorted((100 * row["budget"], row["exact"]) for row in ours if row["method"] == method)
        axis.plot(
            *zip(*points, strict=True),
            marker="o", markersize=4, label=method, color=COLOURS.get(method, OTHERS),
            linewidth=2 if method == SERVED else 1.2,
        )  # fmt: skip
    task, length, turn, _ = panel
    axis.set_title(f"{task}, {length:,} tokens\n{turn}", fontsize=10)
    axis.set_xscale("log")
    ticks = sorted({100 * row["budget"] for row in ours if row["budget"] < 1})
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("kept, %")
    axis.set_ylim(-2, 102)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=7, frameon=False)


def heat(axis: Any, document: dict[str, Any]) -> None:
    picture = axis.imshow(document["map"], aspect="auto", cmap="viridis", vmin=0, vmax=0.3)
    start, stop = document["map_fact"]
    axis.axvspan(start - 0.5, stop - 0.5, color="red", alpha=0.35, linewidth=0)
    axis.set_title(
        f"{document['question']} ({document['budget']:.0%} kept; red: where the fact is)", fontsize=9
    )
    axis.set_ylabel("layer")
    axis.set_xlabel("position / 32")
    axis.figure.colorbar(picture, ax=axis, label="share of cells kept")


def save(figure: Any, path: Path, what: str) -> Path:
    figure.tight_layout()
    target = path.with_name(f"{path.stem}-{what}.png")
    figure.savefig(target, dpi=120)
    return target
