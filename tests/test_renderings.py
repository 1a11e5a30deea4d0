"""Renderings of instructions: what is remembered of them, from several threads too."""

import random
import time
from concurrent.futures import ThreadPoolExecutor

from laprox_sglang import renderings
from laprox_sglang.renderings import RenderingCache

LONGEST = 100


def test_the_least_used_renderings_are_forgotten(monkeypatch):
    monkeypatch.setattr(renderings, "REMEMBERED", 3)
    asked = []
    known = RenderingCache(LONGEST)

    def ask(key):
        known.get(key.encode(), lambda: asked.append(key) or [1])

    for key in "abcadab":
        ask(key)
    # d took the place of b, which nobody had asked for since; a was used again and again.
    assert asked == ["a", "b", "c", "d", "b"]
    assert len(known) == known.tokens == 3


def test_renderings_are_bounded_by_their_tokens():
    known = RenderingCache(LONGEST, tokens=250)
    for key in range(9):
        known.get(bytes([key]), lambda: [1] * LONGEST)
    assert len(known) == 2 and known.tokens == 200
    # Longer than any prompt that is served.
    assert len(known.get(b"long", lambda: [1] * (LONGEST + 1)).tokens) == LONGEST + 1
    assert len(known) == 2 and known.tokens == 200
    known.again(bytes([8]), lambda: [2] * 10)
    assert len(known) == 2 and known.tokens == 110
    known.check_integrity()


def test_threads_that_render_the_same_at_once_count_it_once(seed):
    """Agents that start together share a system prompt that nobody has rendered yet."""
    known = RenderingCache(LONGEST, tokens=300)

    def ask(number):
        rng = random.Random(seed + number)

        def render():
            time.sleep(rng.random() / 500)
            return [1] * rng.randrange(1, LONGEST)

        for _ in range(20):
            key = bytes([rng.randrange(6)])
            (known.again if rng.random() < 0.3 else known.get)(key, render)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(ask, range(16)))
    known.check_integrity()
    assert 0 < len(known) <= 6


def test_what_failed_is_tried_again_after_a_while(monkeypatch):
    now, asked = [0.0], []
    monkeypatch.setattr(renderings, "monotonic", lambda: now[0])
    known = RenderingCache(LONGEST)

    def render():
        asked.append(now[0])
        return [1, 2] if len(asked) > 1 else []

    for now[0] in (0.0, 1.0, renderings.SETTLED_SECONDS + 1, 500.0, 9000.0):
        known.get(b"key", render)
    assert asked == [0.0, renderings.SETTLED_SECONDS + 1] and known.tokens == 2
