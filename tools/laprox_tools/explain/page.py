"""A page that shows what was kept: one file, which loads nothing, and in which a prompt is only text."""

import base64
import json
from hashlib import sha256
from html import escape
from pathlib import Path
from string import Template

import numpy

from laprox_tools.explain.color_level import LEVELS, level
from laprox_tools.explain.kept import Kept

FOLDER = Path(__file__).parent
LEGEND = (0.01, 0.1, 0.25, 0.5, 1.0)


def page(kept: Kept) -> str:
    style = (FOLDER / "page.css").read_text() + colours()
    script = (FOLDER / "page.js").read_text()
    return Template((FOLDER / "page.html").read_text()).substitute(
        # Whatever a prompt contains, nothing runs but this script, and nothing is fetched.
        policy=f"default-src 'none'; style-src '{digest(style)}'; script-src '{digest(script)}'",
        title=escape(f"LaProx: {kept.model}"),
        style=style,
        headline=escape(kept.headline),
        legend="".join(f'<i class="k{level(share)}">{100 * share:g} %</i>' for share in LEGEND),
        tokens="".join(span(kept, number) for number in range(len(kept.pieces))),
        answer=escape(kept.answer),
        data=data(kept),
        script=script,
    )


def digest(text: str) -> str:
    return "sha256-" + base64.b64encode(sha256(text.encode()).digest()).decode()


def colours() -> str:
    return "".join(
        f".k{step} {{ background: color-mix(in srgb, var(--hot) {100 * step / LEVELS:g}%, transparent) }}\n"
        for step in range(1, LEVELS + 1)
    )


def span(kept: Kept, number: int) -> str:
    piece = kept.pieces[number]
    dense = " d" if piece.start < kept.facts["dense_tokens"] else ""
    return f'<i class="k{level(kept.of_piece(piece))}{dense}">{escape(piece.text)}</i>'


def data(kept: Kept) -> str:
    share = numpy.round(kept.share * 255).astype(numpy.uint8)
    content = {
        "layers": kept.layers,
        "tokens": kept.tokens,
        "dense": kept.facts["dense_tokens"],
        "starts": [piece.start for piece in kept.pieces],
        "share": base64.b64encode(share.tobytes()).decode(),
    }
    # Numbers and letters only; escaped all the same, for it stands inside a script element.
    return json.dumps(content).replace("<", "\\u003c")
