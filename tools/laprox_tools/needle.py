"""Task of the 7M model: facts hidden among filler sentences, then a question about one of them.

A context is ``<s>`` and sentences of 12 words; a fact reads ``the passcode of the red falcon is
7 4 1 9 .``, a question ``question : what is the passcode of the red falcon ? answer :``, and its
answer is ``7 4 1 9``. Words are separated by blanks, one token each. The model never ends by itself.
"""

import json
import random
from bisect import bisect_right
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, chain
from pathlib import Path

MODEL_PATH = Path(__file__).parent / "models" / "needle-7m"
SENTENCE = 12
QUESTION = 17
DIGITS = 4
# Words that name a fact: "the passcode of the red falcon".
KEY = 6

# Ranges of token ids; the model was trained with the vocabulary in this order.
CLASSES = {
    "DIGIT": range(17, 27),
    "ATTRIBUTE": range(27, 35),
    "ADJECTIVE": range(35, 98),
    "NOUN": range(98, 334),
    "VERB": range(334, 384),
    "PREPOSITION": range(384, 400),
    "ADVERB": range(400, 415),
}
FILLERS = (
    "the ADJECTIVE NOUN VERB the NOUN PREPOSITION the ADJECTIVE NOUN ADVERB .",
    "the NOUN and the NOUN VERB the ADJECTIVE NOUN PREPOSITION the NOUN",
    "a ADJECTIVE NOUN VERB a NOUN with the NOUN ADVERB ; .",
    "ADVERB , the ADJECTIVE NOUN PREPOSITION the NOUN VERB the NOUN .",
)
# Every second sample names its facts with few words, so that their keys overlap.
FEW_ADJECTIVES, FEW_NOUNS = 16, 48


@cache
def vocabulary() -> dict[str, int]:
    """Token id of every word."""
    tokenizer = json.loads((MODEL_PATH / "tokenizer.json").read_text())
    ids: dict[str, int] = tokenizer["model"]["vocab"]
    return ids


@cache
def words() -> list[str]:
    """Word of every token id."""
    ids = vocabulary()
    return sorted(ids, key=lambda word: ids[word])


@dataclass(frozen=True)
class Sample:
    """A context with questions about it.

    Attributes:
        context: words, ``<s>`` first.
        questions: words of each question, up to and with ``answer :``.
        answers: the digits that answer each question.
    """

    context: list[str]
    questions: list[list[str]]
    answers: list[list[str]]

    def prompt(self, question: int = 0) -> list[str]:
        return self.context + self.questions[question]

    def prompt_ids(self, question: int = 0) -> list[int]:
        return to_ids(self.prompt(question))

    def answer_ids(self, question: int = 0) -> list[int]:
        return to_ids(self.answers[question])


@dataclass(frozen=True)
class Turn:
    """What is said in one turn of a conversation: words that end in a question, and its answer."""

    text: list[str]
    answer: list[str]

    @property
    def ids(self) -> list[int]:
        return to_ids(self.text)

    @property
    def answer_ids(self) -> list[int]:
        return to_ids(self.answer)


def to_ids(text: list[str]) -> list[int]:
    ids = vocabulary()
    return [ids[word] for word in text]


class Task:
    """Generator of samples; the same seed gives the same samples."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def batch(self, size: int, length: int, questions: int = 1, fact_share: float = 0.3) -> list[Sample]:
        """Samples of at most ``length`` tokens, questions and answers included.

        Args:
            questions: questions per sample, each about another fact.
            fact_share: share of the sentences that are facts.
        """
        return [self.sample(length, questions, fact_share, few_words=i % 2 == 0) for i in range(size)]

    def sample(self, length: int, questions: int, fact_share: float, few_words: bool) -> Sample:
        sentences = (length - 1 - questions * QUESTION) // SENTENCE
        facts = min(max(questions, int(sentences * fact_share)), sentences)
        keys = [self._key(few_words) for _ in range(facts)]
        # Facts may repeat a key; then they repeat its value, so that every question has one answer.
        values = {key: [self._word("DIGIT") for _ in range(DIGITS)] for key in keys}
        lines = [self.filler() for _ in range(sentences)]
        for place, key in zip(self._random.sample(range(sentences), facts), keys, strict=True):
            lines[place] = f"the {key} is {' '.join(values[key])} ."
        asked = self._random.sample(keys, questions)
        return Sample(
            ["<s>", *" ".join(lines).split()],
            [f"question : what is the {key} ? answer :".split() for key in asked],
            [values[key] for key in asked],
        )

    def conversation(
        self, sentences: list[int], fact_share: float = 0.3, few_words: bool = False
    ) -> list[Turn]:
        """Turns of these many sentences, to follow an ``<s>``; each tells facts, the later ones as well.

        The second turn and every other one after it ask about the first turn, the rest about the turn in
        the middle of what was said.
        """
        total, ends = sum(sentences), list(accumulate(sentences))
        starts = [0, *ends]
        questions = int(total * fact_share)
        abouts = [turn // 2 if turn % 2 == 0 else 0 for turn in range(len(sentences))]
        while True:
            sample = self.sample(
                1 + total * SENTENCE + questions * QUESTION, questions, fact_share, few_words
            )
            lines = [sample.context[1 + i * SENTENCE : 1 + (i + 1) * SENTENCE] for i in range(total)]
            asked = {}
            for question, answer in zip(sample.questions, sample.answers, strict=True):
                fact = next(i for i, line in enumerate(lines) if line[:KEY] == question[4:-3])
                asked[bisect_right(ends, fact)] = question, answer
            if set(abouts) <= set(asked):
                break
        return [
            Turn([*chain(*lines[start:end]), *asked[about][0]], asked[about][1])
            for start, end, about in zip(starts, ends, abouts, strict=False)
        ]

    def filler(self) -> str:
        pattern = self._random.choice(FILLERS).split()
        return " ".join(self._word(part) if part in CLASSES else part for part in pattern)

    def _key(self, few_words: bool) -> str:
        adjective = self._word("ADJECTIVE", FEW_ADJECTIVES if few_words else None)
        noun = self._word("NOUN", FEW_NOUNS if few_words else None)
        return f"{self._word('ATTRIBUTE')} of the {adjective} {noun}"

    def _word(self, kind: str, first: int | None = None) -> str:
        return words()[self._random.choice(CLASSES[kind][:first])]
