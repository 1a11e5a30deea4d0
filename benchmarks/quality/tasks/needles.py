"""Facts in real prose, and questions about them that a small model can answer.

Every document holds one fact of each kind, somewhere among its sentences. A question is asked in a chat, and
the answer is begun in the model's name: up to what must be looked up, the blank before a number included,
which is a token of its own.
"""

import random
from dataclasses import dataclass
from typing import Any

from benchmarks.quality.tasks.sentences import Shelf
from benchmarks.quality.tasks.task import Case, Earlier, Task, TaskError, Wanted

NAMES = (
    "Clara Whitfield", "Martin Okafor", "Helena Brandt", "Samuel Pereira", "Nora Lindqvist",
    "Victor Almeida", "Grace Donovan", "Peter Novak", "Irene Castellan", "Oscar Hughes", "Lydia Marsh",
    "Henry Tanaka",
)  # fmt: skip
JOBS = (
    "baker", "carpenter", "dentist", "gardener", "lawyer", "librarian", "nurse", "painter", "pilot",
    "plumber", "surgeon", "tailor", "teacher", "photographer", "farmer", "journalist",
)  # fmt: skip
CITIES = (
    "Lisbon", "Vienna", "Chicago", "Madrid", "Cairo", "Toronto", "Sydney", "Berlin", "Boston",
    "Mumbai", "Dublin", "Oslo", "Prague", "Seattle", "Tokyo", "Rome",
)  # fmt: skip
# Each is two tokens or more behind a quotation mark: the first token of an answer never sees pruned KV.
WORDS = (
    "lantern", "orchid", "granite", "falcon", "velvet", "compass", "thunder", "marble", "pepper",
    "violin", "saffron", "glacier", "walnut", "copper", "meadow", "cactus", "ribbon", "tiger",
    "candle", "umbrella", "hurricane", "telescope", "cinnamon", "blackberry", "lighthouse", "windmill",
    "parchment", "moonlight",
)  # fmt: skip
PLACES = (
    "the harbour office", "the north gate", "the old library", "the east wing", "the museum",
    "the wine cellar", "the railway station", "the castle", "the hotel safe", "the clock tower",
)  # fmt: skip
DIGITS = {"4 digits": 4, "5 digits": 5, "7 digits": 7}
KINDS = ("job and city", "word", *DIGITS)
# The question that came before is of a kind so many places on.
APART = 2


@dataclass(frozen=True)
class Fact:
    """
    Attributes:
        sentence: as it stands in the document.
        question: of the user.
        begun: how the model's answer begins.
        answer: what it must say next.
        ended: how its answer ends; need not be said, as a quotation mark and a full stop are one token.
    """

    kind: str
    sentence: str
    question: str
    begun: str
    answer: str
    ended: str = "."


@dataclass(frozen=True)
class Document:
    text: str
    facts: dict[str, Fact]


def draw_fact(kind: str, draw: random.Random) -> Fact:
    if kind == "job and city":
        name, job, city = draw.choice(NAMES), draw.choice(JOBS), draw.choice(CITIES)
        begun, answer = f"{name} works as a", f" {job} in {city}"
        question = f"What does {name} work as, and in which city?"
        return Fact(kind, f"{begun}{answer}.", question, begun, answer)
    place = draw.choice(PLACES)
    if kind == "word":
        word, begun = draw.choice(WORDS), f'The secret password of {place} is "'
        return Fact(kind, f'{begun}{word}".', f"What is the secret password of {place}?", begun, word, '".')
    number = "".join(draw.choices("0123456789", k=DIGITS[kind]))
    what = {"4 digits": "entry code", "5 digits": "serial number", "7 digits": "phone number"}[kind]
    begun = f"The {what} of {place} is "
    return Fact(kind, f"{begun}{number}.", f"What is the {what} of {place}?", begun, number)


class Needles:
    """Documents and prompts for one tokenizer; the same seed gives the same ones."""

    def __init__(self, tokenizer: Any, seed: int) -> None:
        self._tokenizer = tokenizer
        self._random = random.Random(seed)
        self._shelf = Shelf(lambda text: len(self._ids(" " + text)), seed)

    def document(self, tokens: int) -> Document:
        """A document whose prompts have about ``tokens`` tokens, and not more."""
        facts = {kind: draw_fact(kind, self._random) for kind in KINDS}
        around = max(len(self._ids(self._opened(Document("", facts), kind))) for kind in KINDS)
        inside = sum(len(self._ids(" " + fact.sentence)) for fact in facts.values())
        lines = self._shelf.take(tokens - around - inside)
        order = list(facts.values())
        self._random.shuffle(order)
        for fact in order:
            lines.insert(self._random.randint(0, len(lines)), fact.sentence)
        return Document(" ".join(lines), facts)

    def case(self, document: Document, kind: str, before: str) -> Case:
        """The question about one fact of a document, which may also come after that about another."""
        fact, other = document.facts[kind], document.facts[before]
        text, told = self._opened(document, kind), self._opened(document, before)
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        prompt, offsets = encoded["input_ids"], encoded["offset_mapping"]
        start, begin = text.index(document.text), text.index(fact.sentence)
        asked, answered = self._ids(told), self._ids(told + other.answer)
        return Case(
            prompt,
            self._rest(prompt, text + fact.answer),
            kind,
            fact.question,
            context=tokens_before(start + len(document.text), offsets),
            fact=range(tokens_before(begin, offsets), tokens_before(begin + len(fact.sentence), offsets)),
            earlier=Earlier(
                asked,
                self._rest(asked, told + other.answer),
                self._rest(answered, self._opened(document, before, kind)),
            ),
        )

    def _opened(self, document: Document, *kinds: str) -> str:
        """A conversation that asks for these facts one after the other, up to the last answer."""
        messages = []
        for turn, kind in enumerate(kinds):
            fact = document.facts[kind]
            text = fact.question if turn else f"{document.text}\n\n{fact.question}"
            messages += [
                {"role": "user", "content": text},
                {"role": "assistant", "content": fact.begun + fact.answer + fact.ended},
            ]
        opened: str = self._tokenizer.apply_chat_template(
            messages[:-1], tokenize=False, add_generation_prompt=True
        )
        return opened + fact.begun

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _rest(self, before: list[int], whole: str) -> list[int]:
        ids = self._ids(whole)
        if ids[: len(before)] != before:
            raise TaskError("a token of this model reaches from the question into the answer of a needle")
        return ids[len(before) :]


def tokens_before(place: int, offsets: list[tuple[int, int]]) -> int:
    """Tokens that end at or before a character."""
    return sum(end <= place for _, end in offsets)


def cases(wanted: Wanted) -> list[Case]:
    """One question a document, of all kinds in turn.

    Raises:
        TaskError: the tokenizer does not part questions from answers.
    """
    made = Needles(wanted.tokenizer, wanted.seed + wanted.length)
    return [
        made.case(made.document(wanted.length), kind_at(index), kind_at(index + APART))
        for index in range(wanted.count)
    ]


def kind_at(index: int) -> str:
    return KINDS[index % len(KINDS)]


TASK = Task(cases, lengths=(1024, 2048), usual=400, quick=8)
