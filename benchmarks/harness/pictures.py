"""How pictures are written: whole, and small enough for a repository."""

from pathlib import Path
from typing import Any

from benchmarks.harness.files import replacing

# A chart has few colours: with a palette its file is a third of the size.
PALETTE = 128


def drawing() -> Any:
    """``matplotlib.pyplot`` without a screen, in the style of all pictures.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10})
    plt.rcParams.update({"axes.grid": True, "grid.alpha": 0.25, "legend.frameon": False})
    return plt


def save(figure: Any, target: Path, dpi: int) -> Path:
    """Writes a matplotlib figure as PNG and returns its path."""
    # It comes with matplotlib, without which there is no figure.
    from PIL import Image

    with replacing(target) as draft:
        figure.savefig(draft, dpi=dpi)
        with Image.open(draft) as picture:
            # Median cut, the usual method, gives lines of two colours the same one.
            small = picture.convert("RGB").quantize(PALETTE, Image.Quantize.MAXCOVERAGE)
        small.save(draft, optimize=True)
    return target
