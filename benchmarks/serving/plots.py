"""Pictures of the results: KV slots in use over time, and curves over the load."""

from pathlib import Path
from typing import Any

from benchmarks.harness import pictures
from benchmarks.serving.kinds import KINDS, SERVERS
from benchmarks.serving.record import backends, by_workload

# Of a curve's points; what is a dictionary gives one of its values.
PANELS = (
    ("output_tok_s", "", "output tokens / s"),
    ("goodput_agents", "output_tok_s", "goodput for code agents, output tokens / s"),
    ("interactivity_p90", "", "tokens / s of a user, 90 % have more"),
    ("ttft_p95", "", "first token, ms, 95 % are faster"),
)
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
    plt = pictures.drawing()
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
                look = {"color": KINDS[server].colour, "label": KINDS[server].title, "linewidth": 1.6}
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
        figure.legend(*fullest.get_legend_handles_labels(), loc="lower left", ncols=6)
        figure.tight_layout(rect=(0, 0.03, 1, 1))
        drawn.append(save(figure, path, "slots", f"KV slots over time. {subtitle}"))

    curves: dict[str, list[dict[str, Any]]] = {}
    for row in rows.values():
        if "load" in row:
            curves.setdefault(row["load"]["curve"], []).append(row)
    for name, of_curve in curves.items():
        if len(of_curve) < 2:
            continue
        figure, axes = plt.subplots(1, len(PANELS), figsize=(4.2 * len(PANELS), 4))
        of_curve.sort(key=lambda row: row["load"]["at"])
        for axis, panel in zip(axes, PANELS, strict=True):
            draw_panel(axis, of_curve, panel)
        # Names in a row are wider than the panels want to be: no tight layout.
        figure.subplots_adjust(left=0.04, right=0.99, top=0.83, bottom=0.24, wspace=0.22)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=6)
        title = f"{of_curve[0]['what'].rsplit(',', 1)[0]}. {subtitle}. Hollow: too short; x: failed"
        drawn.append(save(figure, path, name, title))
    return drawn


def series(row: dict[str, Any]) -> dict[str, list[list[float]]]:
    found = {server: (row.get(server) or {}).get("slots_over_time") for server in SERVERS}
    return {server: points for server, points in found.items() if points}


def draw_panel(axis: Any, points: list[dict[str, Any]], panel: tuple[str, str, str]) -> None:
    """A line a server; a point that failed is a cross at the bottom, one that is too short is hollow."""
    figure, part, label = panel
    for server, (title, colour, _) in KINDS.items():
        of_server = [(row["load"]["at"], row[server]) for row in points if row.get(server)]
        found = [
            (at, (side.get(figure) or {}).get(part) if part else side.get(figure), bool(side.get("invalid")))
            for at, side in of_server
        ]
        line = [(at, value, invalid) for at, value, invalid in found if value is not None]
        if of_server:
            axis.plot(
                *([at for at, *_ in line], [value for _, value, _ in line]),
                color=colour, label=title, linewidth=1.6,
            )  # fmt: skip
        for at, value, invalid in line:
            axis.plot(at, value, "o", color=colour, markerfacecolor="none" if invalid else None)
        failed = [at for at, side in of_server if "failed" in side]
        axis.plot(failed, [0] * len(failed), "x", color=colour, clip_on=False)
    if figure == "ttft_p95":
        axis.set_yscale("symlog", linthresh=100)
    axis.set_ylim(bottom=0)
    axis.set_title(label, fontsize=9)
    axis.set_xticks([row["load"]["at"] for row in points])
    axis.set_xlabel(points[0]["load"]["unit"])


def save(figure: Any, path: Path, what: str, title: str) -> Path:
    figure.suptitle(title, fontsize=11)
    return pictures.save(figure, path.with_name(f"{path.stem}-{what}.png"), dpi=80)
