"""A picture of what was kept, as PNG."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy

from laprox_tools import CommandError
from laprox_tools.explain.color_level import LEVELS, level
from laprox_tools.explain.kept import Kept

# Inches; the page of text is characters by lines.
WIDTH, MAP_HEIGHT, LINE_HEIGHT = 12.0, 2.6, 0.165
CHARACTERS, MOST_LINES = 130, 60
COLUMNS = 1500
DOTS, PALETTE = 110, 64
# Text stays readable on the darkest of the first part of it.
COLORMAP, DARKEST = "Oranges", 0.6


def draw(kept: Kept, path: Path) -> None:
    """
    Raises:
        CommandError: matplotlib is missing, or the file cannot be written.
    """
    try:
        import matplotlib
        from PIL import Image
    except ImportError:
        raise CommandError(
            "a PNG needs matplotlib: pip install 'laprox-sglang[plots]', or ask for --out FILE.html"
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows, whole = lines(kept)
    text_height = LINE_HEIGHT * (len(rows) + 2)
    figure = pyplot.figure(figsize=(WIDTH, MAP_HEIGHT + text_height + 0.9), dpi=DOTS)
    grid = figure.add_gridspec(
        2, 1, height_ratios=(MAP_HEIGHT, text_height), hspace=0.9 / (MAP_HEIGHT + text_height),
        left=0.05, right=0.955, top=1 - 0.45 / figure.get_figheight(), bottom=0.01,
    )  # fmt: skip
    figure.text(0.05, 1 - 0.3 / figure.get_figheight(), kept.headline, fontsize=11)
    heat_map(kept, figure, figure.add_subplot(grid[0]))
    write_text(rows, whole, figure.add_subplot(grid[1]))
    with warnings.catch_warnings():
        # Characters that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.canvas.draw()
    canvas: Any = figure.canvas
    image = Image.fromarray(numpy.asarray(canvas.buffer_rgba())).convert("RGB")
    pyplot.close(figure)
    try:
        # A quarter of the bytes: text and one ramp of colours need no more.
        image.quantize(PALETTE).save(path, format="png", optimize=True)
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}") from None


def heat_map(kept: Kept, figure: Any, axes: Any) -> None:
    from matplotlib.colors import PowerNorm

    columns = kept.columns(COLUMNS)
    image = axes.imshow(
        columns, aspect="auto", interpolation="nearest", cmap=COLORMAP, norm=PowerNorm(0.5, 0, 1),
        extent=(0, kept.tokens, kept.layers - 0.5, -0.5),
    )  # fmt: skip
    axes.set_xlabel("position in the prompt", fontsize=9)
    axes.set_ylabel("layer", fontsize=9)
    axes.tick_params(labelsize=8)
    bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.02, ticks=(0, 0.1, 0.25, 0.5, 1))
    bar.ax.set_yticklabels(["0", "10 %", "25 %", "50 %", "100 %"], fontsize=7)
    bar.set_label("KV heads that kept it", fontsize=8)


Run = tuple[int, str, float]


def lines(kept: Kept) -> tuple[list[list[Run]], bool]:
    """The text in lines of runs (first column, text, share), and whether it is all there."""
    rows: list[list[Run]] = [[]]
    column = 0
    for piece in kept.pieces:
        share = kept.of_piece(piece)
        for part in parts(piece.text):
            if part == "\n" or column + len(part) > CHARACTERS:
                if len(rows) == MOST_LINES:
                    return rows, False
                rows.append([])
                column = 0
                part = part.lstrip(" \n")
            if part:
                rows[-1].append((column, part, share))
            column += len(part)
    return rows, True


def parts(text: str) -> Iterator[str]:
    """Text without line breaks, no longer than a line, and line breaks; what no line shows is a dot."""
    for number, line in enumerate(text.split("\n")):
        if number:
            yield "\n"
        for start in range(0, len(line), CHARACTERS):
            yield "".join(c if c.isprintable() else "·" for c in line[start : start + CHARACTERS])


def write_text(rows: list[list[Run]], whole: bool, axes: Any) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    axes.set_axis_off()
    axes.set_xlim(0, CHARACTERS)
    axes.set_ylim(len(rows) + 1.5, 0)
    colormap = colormaps[COLORMAP]
    for number, row in enumerate(rows):
        for column, text, share in row:
            if step := level(share):
                colour = colormap(step / LEVELS * DARKEST)
                axes.add_patch(Rectangle((column, number), len(text), 1, color=colour))
            # Dollar signs would begin a formula.
            axes.text(
                column, number + 0.78, text, family="monospace", fontsize=font_size(axes), parse_math=False
            )
    if not whole:
        note = "The text goes on: --out FILE.html shows all of it."
        axes.text(0, len(rows) + 1.2, note, fontsize=8, style="italic")


def font_size(axes: Any) -> float:
    """Points at which ``CHARACTERS`` of a monospaced font (0.6 of their size wide) fill the axes."""
    inches = axes.get_position().width * WIDTH
    return math.floor(72 * inches / CHARACTERS / 0.602 * 100) / 100
