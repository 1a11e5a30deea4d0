"""Options as a client that means no good, or knows no better, may send them."""

import math
import random
import string
from typing import Any

NAMES = ("budget", "enabled", "keep_prefix", "return_kept")
NUMBERS = (
    *(0, 1, 2, 3, 100, 2**31 - 1, 2**31, 2**63, -1, 0.1, 0.2, 0.05, 1.0, 1.5, 1e-9, 1e300, -0.0),
    *(10**40, 10**5000, -(10**5000), math.nan, math.inf, -math.inf),
)
TEXTS = (
    "system",
    "System",
    "",
    "0.1",
    "5",
    "\n",
    "a\nINFO: forged",
    "\u202eevil",
    "\x00",
    "x" * 10**5,
    "ζ" * 999,
)


def draw_options(draw: random.Random) -> Any:
    """``custom_params`` of a request: nothing, well-formed options, or anything at all."""
    if draw.random() < 0.05:
        return draw_value(draw)
    laprox: Any = {draw_name(draw): draw_value(draw) for _ in range(draw.choice((0, 1, 1, 1, 2, 3, 50)))}
    if draw.random() < 0.4:
        laprox = draw_sound(draw)
    elif draw.random() < 0.1:
        laprox = draw_value(draw)
    return {"laprox": laprox} | ({draw_name(draw): draw_value(draw)} if draw.random() < 0.1 else {})


def draw_sound(draw: random.Random) -> dict[str, Any]:
    """Options with values of the right kind, most of which are served."""
    values = {
        "budget": draw.choice((0.05, 0.1, 0.2, 0.3, 100, 1, draw.random())),
        "enabled": draw.random() < 0.5,
        "keep_prefix": draw.choice(("system", 0, 7, 10**6)),
        "return_kept": draw.random() < 0.5,
    }
    return {name: values[name] for name in draw.sample(NAMES, draw.randint(0, len(NAMES)))}


def draw_name(draw: random.Random) -> str:
    if draw.random() < 0.8:
        return draw.choice(NAMES)
    return draw.choice((*TEXTS, "".join(draw.choices(string.printable, k=draw.randint(1, 30)))))


def draw_value(draw: random.Random, depth: int = 0) -> Any:
    kind = draw.random()
    if kind < 0.45:
        return draw.choice(NUMBERS)
    if kind < 0.65:
        return draw.choice(TEXTS)
    if kind < 0.8 or depth > 3:
        return draw.choice((True, False, None))
    if kind < 0.85:
        return nested(draw.choice((5, 200, 900)))
    if kind < 0.92:
        return [draw_value(draw, depth + 1) for _ in range(draw.randint(0, 4))]
    return {draw_name(draw): draw_value(draw, depth + 1) for _ in range(draw.randint(0, 4))}


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value
