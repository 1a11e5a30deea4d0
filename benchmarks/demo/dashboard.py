"""Draws docs/grafana/laprox.json as Grafana lays it out, over scrapes of a server."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import promql_parser
import requests

from benchmarks.demo.promql import Labels, Scrape, scrape, vector
from benchmarks.harness import pictures

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana" / "laprox.json"
EVERY, RANGE = 1.0, "10s"
# Inches of a column and of a row of Grafana's grid.
COLUMN, ROW = 0.7, 0.32
# Rows of a panel that its title and its legend take.
LEGEND = 4
UNITS: dict[str, Callable[[float], str]] = {
    "percentunit": lambda value: f"{value:.0%}",
    "bytes": lambda value: f"{value / 1e6:,.0f} MB",
    "s": lambda value: f"{1000 * value:,.0f} ms",
    "reqps": lambda value: f"{value:.3g}/s",
    "short": lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.3g}",
}


@contextmanager
def scraping(url: str) -> Iterator[list[Scrape]]:
    """Scrapes of a server with ``--enable-metrics``, as long as the block lasts."""
    scrapes: list[Scrape] = []
    ended = threading.Event()

    def look() -> None:
        start = time.monotonic()
        while not ended.wait(EVERY):
            scrapes.append(scrape(time.monotonic() - start, requests.get(f"{url}/metrics", timeout=30).text))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield scrapes
    finally:
        ended.set()
        thread.join()


def series(target: dict[str, Any], scrapes: Sequence[Scrape]) -> dict[str, list[float]]:
    """The lines of one query of a panel, by their legend."""
    asked = (
        target["expr"].replace("$__rate_interval", RANGE).replace("$model", ".*").replace("$instance", ".*")
    )
    query = promql_parser.parse(asked)
    found = [vector(query, scrapes[: end + 1]) for end in range(len(scrapes))]
    lines: dict[Labels, None] = {labels: None for values in found for labels in values}
    return {
        legend(target["legendFormat"], labels): [values.get(labels, float("nan")) for values in found]
        for labels in lines
    }


def legend(form: str, labels: Labels) -> str:
    for name, value in labels:
        form = form.replace(f"{{{{{name}}}}}", value)
    return form


def draw(scrapes: Sequence[Scrape], path: Path) -> None:
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter

    content = json.loads(DASHBOARD.read_text())
    panels = content["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = plt.figure(figsize=(24 * COLUMN, rows * ROW))
    seconds = [one.seconds for one in scrapes]
    for panel in panels:
        place = panel["gridPos"]
        left, top = place["x"] / 24, 1 - place["y"] / rows
        if panel["type"] == "row":
            figure.text(0.01, top - 0.75 / rows, panel["title"], weight="bold", size=13)
            continue
        box = (
            left + 0.035,
            top - (place["h"] - LEGEND + 1.4) / rows,
            place["w"] / 24 - 0.045,
            (place["h"] - LEGEND) / rows,
        )
        axes = figure.add_axes(box)
        axes.set_title(panel["title"], loc="left", size=10)
        for target in panel["targets"]:
            for name, values in series(target, scrapes).items():
                axes.plot(seconds, values, label=name, linewidth=1.4)
        form = UNITS[panel["fieldConfig"]["defaults"].get("unit", "short")]
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _, form=form: form(value)))
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(
                fontsize=7, ncols=4, loc="upper left", bbox_to_anchor=(-0.05, -0.13), frameon=False,
                columnspacing=1, handlelength=1,
            )  # fmt: skip
    pictures.save(figure, path, dpi=60)
    plt.close(figure)
