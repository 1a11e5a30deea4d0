"""What RULER asks (arXiv 2404.06654), in words of our own. Its single needles are our facts in prose."""

import random
from collections.abc import Iterator, Sequence
from itertools import chain, islice

from benchmarks.quality.tasks.chat import Draft, Message, Question, what
from benchmarks.quality.tasks.sentences import squad
from benchmarks.quality.tasks.words import CITIES, PLACES, WORDS

# How often a word comes that comes often, to once of each of the others.
OFTEN = 6
# Between paragraphs.
BREAK = "\n\n"


def number(draw: random.Random, digits: int = 5) -> str:
    return "".join(draw.choices("0123456789", k=digits))


def listed(things: list[str]) -> str:
    return f"{', '.join(things[:-1])} and {things[-1]}"


def multikey(draw: random.Random) -> Draft:
    """Of a document full of facts of one form, one is asked for."""

    def facts() -> Iterator[tuple[str, str]]:
        while True:
            yield f"the {' '.join(draw.sample(WORDS, 2))} of {draw.choice(CITIES)}", number(draw)

    known = dict(islice(facts(), 4))
    asked = [what("multi-key", f"entry code of {key}", code) for key, code in known.items()]
    others = (f"The entry code of {key} is {code}." for key, code in facts() if key not in known)
    return Draft([question.begun + question.answer + "." for question in asked], asked, others)


def multivalue(draw: random.Random) -> Draft:
    """All values of one key, in their order."""
    codes = {place: [number(draw) for _ in range(3)] for place in draw.sample(PLACES, 2)}
    order = ", in the order of the text"
    asked = [
        what("multi-value", f"entry codes of {place}", listed(of), "are", order)
        for place, of in codes.items()
    ]
    facts = ([f"One of the entry codes of {place} is {code}." for code in of] for place, of in codes.items())
    return Draft(list(chain(*zip(*facts, strict=True))), asked, ordered=True)


def multiquery(draw: random.Random) -> Draft:
    """Three keys at once."""
    places = draw.sample(PLACES, 6)
    codes = {place: number(draw) for place in places}
    asked = [
        what(
            "multi-query", f"entry codes of {listed(three)}", listed([codes[place] for place in three]), "are"
        )
        for three in (places[:3], places[3:])
    ]
    return Draft([f"The entry code of {place} is {code}." for place, code in codes.items()], asked)


def variables(draw: random.Random) -> Draft:
    """Names that stand for one number, each by way of the one before."""
    names, values = draw.sample(WORDS, 8), (number(draw), number(draw))
    chains = names[::2], names[1::2]
    text = "Which four variables have the value {}, in the order of the text?"
    asked = [
        Question("variables", text.format(value), f"The variables {first},", f" {listed(others)}")
        for (first, *others), value in zip(chains, values, strict=True)
    ]
    facts = [f"VAR {first} = {value}." for (first, *_), value in zip(chains, values, strict=True)]
    facts += [f"VAR {name} = VAR {before}." for before, name in zip(names, names[2:], strict=False)]
    return Draft(facts, asked, ordered=True)


def words(draw: random.Random) -> Draft:
    """What comes most often in a list."""
    most, first, *others = (f"{a} {b}" for a, b in zip(*[iter(draw.sample(WORDS, 28))] * 2, strict=True))
    asked = [
        Question("common words", "Which pair of words comes most often in the list?", "It is:", f" {most}"),
        Question("first words", "Which pair of words comes first in the list?", "It is:", f" {first}"),
    ]
    hat = [*[most] * OFTEN, *others]
    rest = (f"{pair};" for _ in iter(int, 1) for pair in draw.sample(hat, len(hat)))
    return Draft([], asked, chain([f"{first};"], rest), asked=1)


def questions(draw: random.Random) -> Draft:
    """What people asked about one paragraph of an encyclopedia, among others."""
    rows = squad()
    drawn = draw.sample(rows, 2)
    pieces = list(dict.fromkeys(paragraph for paragraph, _, _ in drawn))
    others = list(dict.fromkeys(paragraph for paragraph, _, _ in rows if paragraph not in pieces))
    asked = [
        Question("questions", text, 'The answer, in the words of the text, is "', answer, '".')
        for _, text, answer in drawn
    ]
    return Draft(pieces, asked, draw.sample(others, len(others)), messages=paragraphs, between=BREAK)


def paragraphs(lines: Sequence[str]) -> list[Message]:
    return [{"role": "user", "content": BREAK.join(lines)}]
