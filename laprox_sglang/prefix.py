"""How much of a chat prompt is instructions: its leading system and developer messages and its tools.

A template may put them where it likes: tools into the first user message, a date or a name in front of
everything. So the same template is asked for the same instructions with another question behind them;
what both prompts begin with does not depend on the question.
"""

from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

INSTRUCTIONS = ("system", "developer")
# Question of the other prompt: no sensible question begins like it.
OTHER_QUESTION = "\u241fζ"
REMEMBERED = 256


class ChatPrompt(list[int]):
    """Token ids of a chat prompt, which know how many of them are instructions.

    Attributes:
        instructions: first tokens of the prompt; 0 where it has no instructions.
    """

    instructions: int = 0


def leading(roles: Sequence[str]) -> int:
    """Number of messages before the first that is no instruction."""
    return next((i for i, role in enumerate(roles) if role not in INSTRUCTIONS), len(roles))


def common(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Length of what both begin with."""
    shorter = min(len(first), len(second))
    return next((i for i in range(shorter) if first[i] != second[i]), shorter)


class Instructions:
    """Prompts with another question, by their instructions; the least used are forgotten."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, tuple[array[int], int]] = OrderedDict()

    def length(self, key: bytes, prompt: Sequence[int], other: Callable[[], Sequence[int]]) -> int:
        """Tokens of ``prompt`` that are instructions.

        Args:
            key: everything that the instructions' part of a prompt is made of.
            other: renders the prompt with another question.
        """
        key = sha256(key).digest()
        rendered, before = self._known.pop(key, (array("q"), -1))
        found = common(prompt, rendered)
        # Less than before: a template may render the date, and it is another day.
        if before < 0 or found < before:
            rendered = array("q", other())
            found = common(prompt, rendered)
        self._known[key] = rendered, found
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        # The last token is never instructions: there must be something to ask.
        return min(found, max(0, len(prompt) - 1))
