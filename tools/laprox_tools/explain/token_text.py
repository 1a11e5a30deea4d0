"""Text of single tokens, as far as there is any: a token may be half a character, or only mean something
behind others."""

from collections.abc import Callable
from typing import NamedTuple

from laprox_sglang.prefix import common

# Tokens before one that decide how it is written: a blank before a word, the rest of a character.
CONTEXT = 4
# A character of UTF-8 has no more bytes, and a byte no more than a token of its own.
LONGEST = 4
# What a decoder writes for bytes that are no character, or not yet.
UNFINISHED = "\ufffd"

Decode = Callable[[list[list[int]]], list[str]]


class Piece(NamedTuple):
    """Tokens [start, end), and the text that they are only together."""

    start: int
    end: int
    text: str


def pieces_of(ids: list[int], decode: Decode) -> list[Piece]:
    """The text of ``ids``, cut where tokens end and characters are whole.

    Args:
        decode: texts of these lists of ids.
    """
    spans = [(i, i + 1) for i in range(len(ids))]
    texts = texts_of(ids, spans, decode)
    # Together where one alone is no character: most prompts have few of these, and need no second look.
    joined = join(spans, texts)
    again = [span for span in joined if span[1] - span[0] > 1]
    whole = dict(zip(again, texts_of(ids, again, decode), strict=True))
    return [Piece(a, b, whole[a, b] if (a, b) in whole else texts[a]) for a, b in joined]


def join(spans: list[tuple[int, int]], texts: list[str]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    open_since = None
    for (start, end), text in zip(spans, texts, strict=True):
        if open_since is not None:
            joined[-1] = (open_since, end)
        else:
            joined.append((start, end))
            open_since = start
        if not text.endswith(UNFINISHED) or end - open_since >= LONGEST:
            open_since = None
    return joined


def texts_of(ids: list[int], spans: list[tuple[int, int]], decode: Decode) -> list[str]:
    """What each span adds to the text of the tokens before it."""
    before = [ids[max(0, start - CONTEXT) : start] for start, _ in spans]
    upto = [ids[max(0, start - CONTEXT) : end] for start, end in spans]
    filled = [part for part in before if part]
    known = iter(decode(filled) if filled else [])
    shorter = [next(known) if part else "" for part in before]
    longer = decode(upto) if upto else []
    # An unfinished character of the shorter one is written out in the longer one.
    heads = [common(a.rstrip(UNFINISHED), b) for a, b in zip(shorter, longer, strict=True)]
    return [text[head:] for head, text in zip(heads, longer, strict=True)]
