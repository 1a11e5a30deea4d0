"""Cases by task: needles in prose, the prose itself, and the long texts of others."""

from functools import cache

from benchmarks.quality.cases import Case
from benchmarks.quality.longtexts import cases as cases_of_others
from benchmarks.quality.needles import KINDS, Needles
from benchmarks.quality.prose import Shelf
from benchmarks.quality.session import Session

# Tokens that follow a stretch of prose, or begin a summary.
NEXT_TOKENS = 48
# Longer prompts take too long on a CPU, and are more than SmolLM2 makes sense of.
LONGEST = 3072


def needles(session: Session, length: int, count: int, seed: int) -> list[Case]:
    """One question a document, of all kinds in turn."""
    made = Needles(session.tokenizer, seed)
    return [made.case(made.document(length), kind) for kind in kinds(count)]


def kinds(count: int, ahead: int = 0) -> list[str]:
    return [KINDS[(index + ahead) % len(KINDS)] for index in range(count)]


def prose(session: Session, length: int, count: int, seed: int) -> list[Case]:
    """Stretches of prose, and what follows."""

    @cache
    def tokens(text: str) -> list[int]:
        ids: list[int] = session.tokenizer(" " + text, add_special_tokens=False)["input_ids"]
        return ids

    shelf = Shelf(lambda text: len(tokens(text)), seed)
    found: list[Case] = []
    while len(found) < count:
        # A stretch ends with a sentence, up to a long one before it is full.
        ids = [token for line in shelf.take(length + NEXT_TOKENS + 200) for token in tokens(line)]
        if len(ids) >= length + NEXT_TOKENS:
            found.append(Case("prose", ids[:length], ids[length : length + NEXT_TOKENS]))
    return found


def others(session: Session, name: str, count: int, skip: int = 0) -> list[Case]:
    found = cases_of_others(name, session.data, session.tokenizer, LONGEST)[skip : skip + count]
    return [Case(case.kind, case.prompt, case.answer[:NEXT_TOKENS]) for case in found]
