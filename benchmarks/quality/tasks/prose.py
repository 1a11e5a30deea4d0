"""Stretches of prose: how far the distribution of the tokens that follow moves."""

from functools import cache

from benchmarks.quality.tasks.sentences import Shelf
from benchmarks.quality.tasks.task import Case, Task, Wanted

# Tokens that follow. A stretch ends with a sentence, up to a long one before it is full.
NEXT_TOKENS, LONG_SENTENCE = 48, 200


def cases(wanted: Wanted) -> list[Case]:
    @cache
    def tokens(text: str) -> list[int]:
        ids: list[int] = wanted.tokenizer(" " + text, add_special_tokens=False)["input_ids"]
        return ids

    shelf = Shelf(lambda text: len(tokens(text)), wanted.seed)
    needed = wanted.length + NEXT_TOKENS
    found: list[Case] = []
    while len(found) < wanted.count:
        ids = [token for line in shelf.take(needed + LONG_SENTENCE) for token in tokens(line)]
        if len(ids) >= needed:
            found.append(Case(ids[: wanted.length], ids[wanted.length : needed], "prose"))
    return found


TASK = Task(cases, lengths=(2048,), graded=False, usual=100, quick=2)
