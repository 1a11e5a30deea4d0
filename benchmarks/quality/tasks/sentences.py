"""Sentences and paragraphs of real prose, which the tasks are made of, and questions about them."""

import lzma
import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "texts"
BOOK, ENCYCLOPEDIA = "pride", "squad"
# A sentence ends at its mark, unless that stands behind a title or an initial.
END = re.compile(r"(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!\b[A-Z])([.!?]\"?)\s+(?=[\"A-Z])")


def paragraphs(name: str) -> list[str]:
    """Paragraphs of a text of the repository, each on one line, in order."""
    text = lzma.decompress((FOLDER / f"{name}.txt.xz").read_bytes()).decode()
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]


@cache
def squad() -> list[tuple[str, str, str]]:
    """Paragraph, question and answer of people."""
    texts = paragraphs(ENCYCLOPEDIA)
    rows = lzma.decompress((FOLDER / "squad-questions.txt.xz").read_bytes()).decode().splitlines()
    return [(texts[int(place)], asked, answer) for place, asked, answer in (row.split("\t") for row in rows)]


@cache
def sentences(name: str) -> list[str]:
    """Sentences of a text of the repository, each on one line, in order."""
    found = []
    for line in paragraphs(name):
        if line and not line.startswith("Chapter "):
            found += END.sub(r"\1\n", line).split("\n")
    return found


class Shelf:
    """Deals out stretches of prose that do not overlap, in a drawn order; once all are dealt, others.

    There are about 200,000 tokens of SmolLM2; then stretches begin elsewhere.
    """

    def __init__(
        self, count: Callable[[str], int], seed: int, names: tuple[str, ...] = (BOOK, ENCYCLOPEDIA)
    ) -> None:
        """
        Args:
            count: tokens of a sentence.
        """
        self._sentences = [sentence for name in names for sentence in sentences(name)]
        self._count = cache(count)
        self._random = random.Random(seed)
        self._starts: list[int] = []
        self._length = 0

    def take(self, tokens: int) -> list[str]:
        """Sentences of about ``tokens`` tokens together, not more."""
        if not self._starts or self._length != tokens:
            self._length = tokens
            self._starts = self._cut(tokens, self._random.randrange(50))
            self._random.shuffle(self._starts)
        return self._stretch(self._starts.pop(), tokens)

    def _cut(self, tokens: int, start: int) -> list[int]:
        starts = []
        while (length := len(self._stretch(start, tokens))) and start + length < len(self._sentences):
            starts.append(start)
            start += length
        return starts

    def _stretch(self, start: int, tokens: int) -> list[str]:
        end, left = start, tokens
        while end < len(self._sentences) and (left := left - self._count(self._sentences[end])) >= 0:
            end += 1
        return self._sentences[start:end]
