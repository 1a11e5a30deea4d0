"""Sessions of code agents from a seed, with the quantiles of recorded ones: load without a trace.

The quantiles are of 692 Claude Code sessions with 45,542 requests (kv-cache-tester, ``traces``, Apache-2.0),
cut as ``traces.py`` cuts them. At 64K and at 128K the medians of prompts, new tokens, answers, pauses and
steps that come out are within a fifth of the recorded ones. Lengths are drawn one by one; what hangs together
in a real session, such as a long answer and a long pause, does not here.
"""

import random

import numpy

from benchmarks.serving.load.traces import LEAST_STEPS, cut
from benchmarks.serving.load.workload import Session, Step

# Distributions by their values at these shares; between them they are straight in the logarithm.
SHARES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
FIRST_PROMPT = (9e3, 9925, 12639, 15161, 18205, 20506, 56686, 92915, 106852, 122990, 129465)
# What a prompt is longer than the one before, whose answer is part of it; after the first steps.
GROWTH = (70, 90, 138, 168, 265, 470, 1000, 2300, 4000, 10e3, 40e3)
# An agent reads much more in its first steps.
EARLY_STEPS, EARLY_GROWTH = 3, 10.0
OUTPUT = (20, 46, 79, 97, 128, 199, 354, 685, 1184, 3307, 12625)
PAUSE = (1, 2, 3, 3.1, 5, 7, 19, 121, 287, 1895, 72e3)
STEPS = (4, 5, 7, 9, 19, 44, 84, 149, 190, 290, 400)
# Of the steps that do not go on where the one before ended; how much of its prompt they keep.
BREAKS, KEPT = 0.06, (0.05, 0.1, 0.2, 0.3, 0.97, 0.99, 0.995, 0.998, 0.999, 0.9995, 1.0)


def draw(values: tuple[float, ...], source: random.Random) -> float:
    return float(numpy.exp(numpy.interp(source.random(), SHARES, numpy.log(values))))


def agents(seed: int, count: int, limit: int, longest_pause: float) -> list[Session]:
    """
    Args:
        limit, longest_pause: as ``read_trace`` has them.
    """
    source = random.Random(f"agents {seed}")
    found: list[Session] = []
    while len(found) < count:
        session = cut(agent(f"agent {seed} {len(found)}", source, limit), limit, longest_pause)
        if len(session.steps) >= LEAST_STEPS:
            found.append(session)
    return found


def agent(name: str, source: random.Random, limit: int) -> Session:
    steps = [Step(round(draw(FIRST_PROMPT, source)), 0, round(draw(OUTPUT, source)))]
    for number in range(1, round(draw(STEPS, source))):
        before = steps[-1].prompt
        broken = source.random() < BREAKS
        shared = round(draw(KEPT, source) * before) if broken else before
        growth = draw(GROWTH, source) * (EARLY_GROWTH if number < EARLY_STEPS else 1)
        prompt = max(1, before + round(growth))
        steps.append(Step(prompt, shared, round(draw(OUTPUT, source)), draw(PAUSE, source)))
        if prompt > limit:
            break
    return Session(name, tuple(steps))
