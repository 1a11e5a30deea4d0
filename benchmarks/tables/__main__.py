"""Writes the figures of the committed results into README.md and the other pages; draws the pictures.

    python -m benchmarks.tables            # after results have changed
    python -m benchmarks.tables --check    # fails where a page says something else; writes nothing

What lies between `<!-- figures: NAME -->` and `<!-- end of figures -->` is replaced.
"""

import re
import sys
from pathlib import Path

from benchmarks.harness.arguments import parser as parser_of
from benchmarks.harness.provenance import ROOT
from benchmarks.quality.record import report
from benchmarks.quality.record.results_file import Results, ResultsError
from benchmarks.serving import plots
from benchmarks.tables import all_rows, committed, kernel_times, load_points, speed
from benchmarks.tables.headline import headline
from benchmarks.tables.shared_budget import shared, under_pressure
from benchmarks.tables.tried_models import models

PATTERN = re.compile(r"(<!-- figures: (\w+) -->).*?(<!-- end of figures -->)", re.DOTALL)


def readme() -> dict[str, str]:
    results = quality("quality")
    return {
        "headline": headline(),
        "speed": speed.against_stock(),
        "quality": report.readme(results),
        "sources": speed.sources(results),
    }


def about_quality() -> dict[str, str]:
    results = quality("quality")
    return {
        "needles": all_rows.trained_model(),
        "methods": report.by_task(results),
        "sharing": shared(),
        "pressed": under_pressure(),
    }


def all_figures() -> dict[str, str]:
    return {
        "all": all_rows.chip(committed.serving()[speed.CHIP]),
        "history": "\n\n".join(
            all_rows.chip(content) for chip, content in committed.serving().items() if chip != speed.CHIP
        ),
        "points": load_points.all_points(),
        "checks": "\n\n".join(map(all_rows.checked, committed.checks().values())),
    }


def quality(name: str) -> Results:
    return Results(committed.RESULTS / f"{name}.json", None)


PAGES = {
    Path("README.md"): readme,
    Path("docs/on-a-gpu.md"): lambda: {
        "pruning": kernel_times.pruning(),
        "decoding": kernel_times.decoding(),
    },
    Path("docs/host-tier.md"): lambda: {"copies": kernel_times.copies()},
    Path("docs/models.md"): models,
    Path("docs/quality.md"): about_quality,
    Path("benchmarks/README.md"): all_figures,
}


def filled(text: str, blocks: dict[str, str]) -> str:
    """A page with the figures of today.

    Raises:
        TablesError: a block has no place in it, or a place no block.
    """
    places = [name for _, name, _ in PATTERN.findall(text)]
    if sorted(places) != sorted(blocks):
        raise committed.TablesError(
            f"it has places for {', '.join(places) or 'none'}, not for {', '.join(blocks)}"
        )
    return PATTERN.sub(lambda found: f"{found[1]}\n\n{blocks[found[2]]}\n\n{found[3]}", text)


def main(arguments: list[str], root: Path = ROOT) -> int:
    parser = parser_of("tables", __doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page differs")
    check = parser.parse_args(arguments).check
    wrong = 0
    for page, blocks in PAGES.items():
        text = (root / page).read_text()
        try:
            new = filled(text, blocks())
        except (committed.TablesError, ResultsError) as error:
            print(f"tables: {page}: {error}", file=sys.stderr)
            return 2
        if check and new != text:
            print(f"tables: {page} is not what the results say: python -m benchmarks.tables", file=sys.stderr)
            wrong += 1
        elif not check:
            (root / page).write_text(new)
            print(f"written: {page}")
    if not check:
        for chip, content in committed.serving().items():
            print(plots.written(content, committed.RESULTS / f"serving-{chip}.json"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
