"""Shares as colours and strips of blocks, in a terminal."""

from collections.abc import Sequence

from rich.style import Style
from rich.text import Text

from laprox_sglang.cli.scale import LEVELS, level

BLOCKS = "▁▂▃▄▅▆▇█"
# Readable on light terminals and on dark ones: each colour brings its own ink.
COLD, HOT, INK = (255, 246, 219), (240, 140, 0), "#1a1a1a"


def style(share: float) -> Style:
    step = level(share)
    if step == 0:
        return Style()
    r, g, b = (round(a + (z - a) * step / LEVELS) for a, z in zip(COLD, HOT, strict=True))
    return Style(color=INK, bgcolor=f"#{r:02x}{g:02x}{b:02x}")


def strip(values: Sequence[float]) -> Text:
    """One block a value, as high as it is beside the largest."""
    top = max(values, default=0) or 1
    blocks = (BLOCKS[min(len(BLOCKS) - 1, int(value / top * len(BLOCKS)))] for value in values)
    return Text("".join(blocks), style="dark_orange")
