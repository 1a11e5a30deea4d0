"""Modules of functions whose names say nothing: which one does it, and how it is called."""

import random
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

from benchmarks.quality.tasks.chat import Draft, Message, Question, cases
from benchmarks.quality.tasks.task import LONG, Task
from benchmarks.quality.tasks.words import CITIES, WORDS

MEASURES = ("weight", "price", "age", "delay", "volume", "distance", "height", "width")
THINGS = ("parcels", "tickets", "invoices", "sensors", "lorries", "books", "pumps", "tenants", "engines")
BREAK = "\n\n\n"
BODIES = (
    "rows = [row for row in {0} if row['{4}'] > {1}]\n    return {2} * sum(row['{4}'] for row in rows)",
    "total = 0.0\n    for row in {0}:\n        total += row['{4}'] * {1}\n    return max(total, {2}) / {3}",
    "found = sorted({0}, key=lambda row: row['{4}'])\n    return found[{1}:{2}][{3} % len(found)]",
)


class Function(NamedTuple):
    name: str
    parameters: list[str]
    purpose: str
    text: str


def functions(draw: random.Random) -> Iterator[Function]:
    while True:
        name, parameters = "_".join(draw.sample(WORDS, 2)), draw.sample(WORDS, 3)
        measure = draw.choice(MEASURES)
        purpose = f"the {measure} of all {draw.choice(THINGS)} from {draw.choice(CITIES)}"
        body = draw.choice(BODIES).format(*parameters, draw.randint(2, 99), measure)
        head = f'def {name}({", ".join(parameters)}):\n    """Return {purpose}."""'
        yield Function(name, parameters, purpose, f"{head}\n    {body}")


def draft(draw: random.Random) -> Draft:
    made = functions(draw)
    known = list(islice(made, 4))
    asked = [find(one) if index % 2 else call(one) for index, one in enumerate(known)]
    names, purposes = {one.name for one in known}, {one.purpose for one in known}
    others = (one.text for one in made if one.name not in names and one.purpose not in purposes)
    return Draft([one.text for one in known], asked, others, messages=module, between=BREAK)


def find(one: Function) -> Question:
    return Question("find", f"Which function returns {one.purpose}?", "It is the function `", one.name, "`.")


def call(one: Function) -> Question:
    text = f"Call `{one.name}`. All its arguments are variables that are named as its parameters, by keyword."
    arguments = ", ".join(f"{name}={name}" for name in one.parameters)
    return Question("call", text, f"```python\n{one.name}(", arguments, ")\n```")


def module(lines: Sequence[str]) -> list[Message]:
    return [{"role": "user", "content": f"```python\n{BREAK.join(lines)}\n```"}]


TASK = Task(partial(cases, draft), lengths=LONG)
