"""A row of numbers as blocks of a terminal."""

from collections.abc import Sequence

from rich.text import Text

BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float]) -> Text:
    """One block a value, as high as it is beside the largest."""
    top = max(values, default=0) or 1
    blocks = (BLOCKS[min(len(BLOCKS) - 1, int(value / top * len(BLOCKS)))] for value in values)
    return Text("".join(blocks), style="dark_orange")
