"""Where the instructions of a chat prompt are: its system and developer messages and its tools.

A template may put them where it likes: tools into the first user message or in front of the last, a date
before everything, a later system message between the first one and the tools. So the same template is
asked for the same instructions with another question behind them, and for that question alone. What the
question alone does not end with are instructions. What a prompt begins with like the first of these
renderings does not depend on its question, so it can stay dense; instructions that stand elsewhere in the
prompt are looked for there.

Tokens are characters of a string here (``renderings.packed``).
"""

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from time import monotonic
from typing import NamedTuple

from laprox_sglang.renderings import Rendering, RenderingCache, packed

INSTRUCTIONS = ("system", "developer")
# Question of the other prompt: no sensible question begins like it.
OTHER_QUESTION = "\u241fζ"
# Where text meets text a tokenizer may merge it, so that up to as many tokens differ.
SEAM = 3
# Searches for pieces of instructions in one prompt.
TRIES = 32

Span = tuple[int, int]


class Found(NamedTuple):
    """Where a prompt's instructions are.

    Attributes:
        dense: first tokens of the prompt that do not depend on its question.
        spans: positions [a, b) of instructions behind those, in order, none touching another.
        missing: tokens of instructions that are not in the prompt as the template renders them alone.
        rendered: False if the template does not render instructions alone: nothing is known then.
    """

    dense: int
    spans: tuple[Span, ...] = ()
    missing: int = 0
    rendered: bool = True

    @property
    def inside(self) -> int:
        """Tokens of ``spans``."""
        return sum(beyond - first for first, beyond in self.spans)

    @property
    def how(self) -> str:
        """What becomes of the instructions, in a word."""
        if not self.rendered:
            return "not_rendered"
        if self.missing:
            return "not_found"
        return "protected" if self.spans else "dense"


def leading(roles: Sequence[str]) -> int:
    """Number of messages before the first that is no instruction."""
    return next((i for i, role in enumerate(roles) if role not in INSTRUCTIONS), len(roles))


class ChatPrompt(list[int]):
    """Token ids of a chat prompt, which know where its instructions are.

    Attributes:
        found: None where nobody looked for them.
    """

    found: Found | None = None


class ChatText(str):
    """Text of a chat prompt whose tokens are not known yet: a model's processor makes them, and many of one
    picture.

    Attributes:
        look: finds the instructions in those tokens.
    """

    look: Callable[[Sequence[int]], Found]

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """Text and no more, wherever it is copied or sent to."""
        return str, (str(self),)


def common(first: str, second: str) -> int:
    """Length of what both begin with."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    # The parts below `low` are equal, those up to `high` are not.
    low, high = 0, shorter
    while high - low > 1:
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low


def common_end(first: str, second: str) -> int:
    """Length of what both end with."""
    shorter = min(len(first), len(second))
    return common(first[len(first) - shorter :][::-1], second[len(second) - shorter :][::-1])


class Renderings(NamedTuple):
    """Tokens of what a template makes of other prompts than the one at hand; "" where it makes nothing.

    Attributes:
        instructed: all instructions, and another question.
        leading: only those before the conversation, and that question.
        bare: that question alone.
    """

    instructed: str
    leading: str
    bare: str


def find(prompt: str, renderings: Renderings) -> Found:
    """Where the instructions that were rendered are in ``prompt``."""
    instructed, leading, bare = renderings
    # The last token is never instructions: there must be something to ask.
    last = max(0, len(prompt) - 1)
    if not instructed:
        return Found(min(common(prompt, leading), last), rendered=False)
    same = min(common(prompt, instructed), last)
    # A template that moves later instructions in front has more in common with all of them, others with those
    # that lead.
    dense = max(same, min(common(prompt, leading), last))
    same_end = common_end(instructed, bare)
    end = len(instructed) - same_end
    if same >= min(end, last):
        return Found(dense)
    places = [(0, dense)]
    # Instructions that a template puts behind the last question end the prompt as they end the rendering.
    behind = common_end(prompt[same:], instructed[same:])
    if behind > same_end:
        end = len(instructed) - behind
        end -= common_end(instructed[same:end], bare[: len(bare) - same_end])
        places.append((len(prompt) - behind, len(prompt) - same_end))
    pieces, missing = locate(instructed[same:end], prompt, same)
    (_, dense), *spans = merged((first, min(beyond, last)) for first, beyond in [*places, *pieces])
    return Found(dense, tuple(spans), missing)


def locate(block: str, prompt: str, start: int) -> tuple[list[Span], int]:
    """The places of ``block`` in ``prompt[start:]``, piece by piece, and how many of its tokens are nowhere.

    A few tokens that are missing between two pieces were merged with what they meet, or are too few to be
    sure of: all of ``seam`` is taken for them.
    """
    places: list[Span] = []
    at = missing = gap = 0
    before, step = start, 1
    for _ in range(TRIES):
        if len(block) - at <= SEAM:
            break
        size, place = longest(block[at:], prompt, before, start)
        if not size:
            # Steps grow, and the next piece grows backwards: what is nowhere may be long.
            gap, at = gap + step, at + step
            step *= 2
            continue
        back = common_end(block[at - gap : at], prompt[start:place])
        lost = block[at - gap : at - back]
        if len(lost) > SEAM:
            missing += len(lost)
        else:
            places += seam(lost, prompt, before, place - back, start)
        places.append((place - back, place + size))
        at, before, gap, step = at + size, place + size, 0, 1
    rest = block[at - gap :]
    if len(rest) > SEAM:
        return places, missing + len(rest)
    return [*places, *seam(rest, prompt, before, before, start)], missing


def seam(lost: str, prompt: str, before: int, behind: int, start: int) -> list[Span]:
    """Where a few tokens may be that are missing between two pieces: at either, or on their own."""
    if not lost:
        return []
    size, alone = len(lost), seek(lost, prompt, before, start)
    places = [(before, before + size), (max(start, behind - size), behind)]
    return places if alone < 0 else [*places, (alone, alone + size)]


def longest(piece: str, prompt: str, before: int, start: int) -> tuple[int, int]:
    """Length and place of what ``piece`` begins with and ``prompt[start:]`` has; 0 if that is too short."""
    place = seek(piece, prompt, before, start)
    if place >= 0:
        return len(piece), place
    # Grows until there is no such piece, and then halves the doubt. Pieces of `found` tokens are there.
    found, size = 0, SEAM + 1
    while size < len(piece) and (at := seek(piece[:size], prompt, before, start)) >= 0:
        found, place, size = size, at, 2 * size
    size = min(size, len(piece))
    while found and size - found > 1:
        middle = (found + size) // 2
        at = seek(piece[:middle], prompt, before, start)
        if at < 0:
            size = middle
        else:
            found, place = middle, at
    return found, place


def seek(piece: str, prompt: str, before: int, start: int) -> int:
    """Place of ``piece`` in ``prompt[start:]``, if there is one behind what stands before it; or -1."""
    place = prompt.find(piece, before)
    return place if place >= 0 else prompt.find(piece, start)


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same positions in order; what touches is one."""
    result: list[Span] = []
    for first, beyond in sorted(spans):
        if result and first <= result[-1][1]:
            result[-1] = result[-1][0], max(result[-1][1], beyond)
        elif first < beyond or not result:
            result.append((first, beyond))
    return result


class InstructionFinder:
    """Finds instructions in prompts, and remembers how the template renders them.

    Attributes:
        memory: of renderings.
    """

    def __init__(self, longest: int) -> None:
        """
        Args:
            longest: tokens of the longest prompt that is served.
        """
        self.memory = RenderingCache(longest)

    def find(self, prompt: Sequence[int], asks: "Asks") -> Found:
        tokens = packed(prompt)
        keys = [sha256(ask.key).digest() for ask in asks]
        known = [self.memory.get(key, ask.render) for key, ask in zip(keys, asks, strict=True)]
        found = find(tokens, Renderings(*(each.tokens for each in known)))
        # Less than before: a template may render the date, and it is another day.
        if found.dense < known[0].dense and known[0].settled < monotonic():
            made: dict[bytes, Rendering] = {}
            for key, ask in zip(keys, asks, strict=True):
                made[key] = made.get(key) or self.memory.again(key, ask.render)
            known = [made[key] for key in keys]
            found = find(tokens, Renderings(*(each.tokens for each in known)))
        known[0].dense = found.dense
        return found


class Ask(NamedTuple):
    """A prompt to be rendered.

    Attributes:
        key: everything that it is made of.
    """

    key: bytes
    render: Callable[[], Sequence[int]]


class Asks(NamedTuple):
    """The prompts of ``Renderings``. Where all instructions lead, the first two are one."""

    instructed: Ask
    leading: Ask
    bare: Ask
