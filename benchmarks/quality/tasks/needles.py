"""Facts in real prose, and questions about them that a small model can answer: one fact of each kind."""

import random
from functools import partial

from benchmarks.quality.tasks.chat import Draft, Question, cases, what
from benchmarks.quality.tasks.task import Task
from benchmarks.quality.tasks.words import CITIES, JOBS, NAMES, PLACES, WORDS

DIGITS = {"4 digits": 4, "5 digits": 5, "7 digits": 7}
KINDS = ("job and city", "word", *DIGITS)


def draw_fact(kind: str, draw: random.Random) -> Question:
    """A question; its fact is the answer as it is begun and ended."""
    if kind == "job and city":
        name, job, city = draw.choice(NAMES), draw.choice(JOBS), draw.choice(CITIES)
        question = f"What does {name} work as, and in which city?"
        return Question(kind, question, f"{name} works as a", f" {job} in {city}")
    place = draw.choice(PLACES)
    if kind == "word":
        word, begun = draw.choice(WORDS), f'The secret password of {place} is "'
        return Question(kind, f"What is the secret password of {place}?", begun, word, '".')
    number = "".join(draw.choices("0123456789", k=DIGITS[kind]))
    named = {"4 digits": "entry code", "5 digits": "serial number", "7 digits": "phone number"}[kind]
    return what(kind, f"{named} of {place}", number)


def draft(draw: random.Random) -> Draft:
    facts = [draw_fact(kind, draw) for kind in KINDS]
    return Draft([fact.begun + fact.answer + fact.ended for fact in facts], facts)


TASK = Task(partial(cases, draft), lengths=(1024, 2048, 4096, 8192, 16384), usual=200, quick=8)
