"""Pictures of the results: KV slots in use over time, and throughput against the length of the prompts."""

from pathlib import Path
from typing import Any

from benchmarks.harness import pictures
from benchmarks.serving.record import backends, by_workload
from benchmarks.serving.workload import FP8, LAPROX, SERVERS, STOCK

COLOURS = {STOCK: "#8a8f98", LAPROX: "#1f6feb", FP8: "#c98a2b"}
NAMES = {STOCK: "stock SGLang", LAPROX: "LaProx, 5 %", FP8: "stock SGLang, fp8 KV"}
OVER_TIME = ("b", "b-full", "a", "c-open", "f")


def written(content: dict[str, Any], path: Path) -> str:
    """Draws the pictures, and says what was written."""
    try:
        return f"written: {', '.join(map(str, [path, *draw(content, path)]))}"
    except ImportError:
        return f"written: {path}; no pictures: matplotlib is not installed"


def draw(content: dict[str, Any], path: Path) -> list[Path]:
    """Draws what there are rows for, beside the results file, and returns the pictures.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True})
    plt.rcParams.update({"grid.alpha": 0.25, "font.size": 10, "legend.frameon": False})
    rows = by_workload(content["rows"])
    drawn = []
    subtitle = f"{content['chip']}, Llama-3.1-8B shapes" if not content["quick"] else "--quick: says nothing"

    timed = [rows[name] for name in OVER_TIME if name in rows and series(rows[name])]
    if timed:
        figure, axes = plt.subplots(
            2, len(timed), figsize=(1.5 + 4.5 * len(timed), 6), sharex="col", squeeze=False
        )
        for column, row in enumerate(timed):
            for server, points in series(row).items():
                seconds = [point[0] for point in points]
                look = {"color": COLOURS[server], "label": NAMES[server], "linewidth": 1.6}
                axes[0][column].plot(seconds, [point[1] / 1000 for point in points], **look)
                axes[1][column].plot(seconds, [point[2] for point in points], **look)
            axes[0][column].set_title(f"({row['workload']}) {row['what']}\n{backends(row)}", fontsize=9)
            axes[1][column].set_xlabel("seconds")
            for axis in axes[:, column]:
                axis.set_ylim(bottom=0)
                axis.set_xlim(left=0)
        axes[0][0].set_ylabel("KV slots in use, thousands")
        axes[1][0].set_ylabel("requests at once")
        # Outside: in some column a line runs through every corner.
        fullest = max(axes[0], key=lambda axis: len(axis.get_lines()))
        figure.legend(*fullest.get_legend_handles_labels(), loc="lower left", ncols=len(SERVERS))
        drawn.append(save(figure, path, "slots", f"KV slots over time. {subtitle}"))

    lengths = sorted(int_length(name) for name, row in rows.items() if name.startswith("sweep-"))
    by_length = {int_length(name): row for name, row in rows.items() if name.startswith("sweep-")}
    if len(lengths) > 1:
        figure, axis = plt.subplots(figsize=(6.5, 4.2))
        for server in (STOCK, LAPROX):
            sides = [(n, by_length[n][server]) for n in lengths if by_length[n].get(server)]
            axis.plot(
                [n for n, _ in sides],
                [side["output_tok_s"] for _, side in sides],
                marker="o", color=COLOURS[server], label=NAMES[server],
            )  # fmt: skip
        axis.set_xscale("log", base=2)
        axis.set_xticks(lengths, [f"{n // 1024}K" if n % 1024 == 0 else str(n) for n in lengths])
        axis.set_ylim(bottom=0)
        axis.set_xlabel("prompt tokens per request; the same number in flight at every length")
        axis.set_ylabel("output tokens / s")
        axis.legend(loc="best")
        drawn.append(save(figure, path, "context", f"Throughput and context length. {subtitle}"))
    return drawn


def series(row: dict[str, Any]) -> dict[str, list[list[float]]]:
    found = {server: (row.get(server) or {}).get("slots_over_time") for server in SERVERS}
    return {server: points for server, points in found.items() if points}


def int_length(name: str) -> int:
    """Prompt tokens of a workload ``sweep-8k`` or ``sweep-300``."""
    text = name.removeprefix("sweep-")
    return int(text.removesuffix("k")) * 1024 if text.endswith("k") else int(text)


def save(figure: Any, path: Path, what: str, title: str) -> Path:
    figure.suptitle(title, fontsize=11)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    return pictures.save(figure, path.with_name(f"{path.stem}-{what}.png"), dpi=80)
