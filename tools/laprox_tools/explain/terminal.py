"""What was kept of a prompt, as coloured text in a terminal."""

from rich.console import Console
from rich.style import Style
from rich.text import Text

from laprox_tools.explain.color_level import LEVELS, level
from laprox_tools.explain.kept import Kept
from laprox_tools.sparkline import sparkline

# Readable on light terminals and on dark ones: each colour brings its own ink.
COLD, HOT, INK = (255, 246, 219), (240, 140, 0), "#1a1a1a"


def draw(kept: Kept) -> None:
    console = Console(highlight=False)
    console.print(Text(kept.headline, style="bold"))
    console.print(Text("kept by layer, 0 first  ") + sparkline(kept.share.mean(axis=1).tolist()))
    text = Text()
    for piece in kept.pieces:
        text.append(visible(piece.text), style=style(kept.of_piece(piece)))
    console.print(text)
    console.print(Text(f"→ {visible(kept.answer.strip())}", style="bold"))


def style(share: float) -> Style:
    step = level(share)
    if step == 0:
        return Style()
    r, g, b = (round(a + (z - a) * step / LEVELS) for a, z in zip(COLD, HOT, strict=True))
    return Style(color=INK, bgcolor=f"#{r:02x}{g:02x}{b:02x}")


def visible(text: str) -> str:
    """Printable characters only: a prompt or an answer must not control the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "·" for c in text)
