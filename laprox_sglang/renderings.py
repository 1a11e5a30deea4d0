"""What a chat template made of instructions, remembered: rendering them again would double a chat's work."""

from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from time import monotonic

# What is remembered, in all: entries, and tokens.
REMEMBERED, REMEMBERED_TOKENS = 256, 4_000_000
# How long a rendering that was just found to be the template's still counts as such, and how long one that
# failed is not tried again. Chats whose turns put instructions in different places cost one more rendering
# in so many seconds.
SETTLED_SECONDS = 60.0


def packed(tokens: Sequence[int]) -> str:
    """One character a token: Python compares and searches strings at the speed of C, and they take at most
    four bytes a token. Ids are below 1,114,112, as those of every vocabulary are."""
    return array("I", tokens).tobytes().decode("utf-32-le", "surrogatepass")


@dataclass(slots=True)
class Rendering:
    """
    Attributes:
        tokens: "" if the template does not render this.
        dense: tokens that the last prompt had in common with it.
        settled: until when it is known to be what the template still renders.
    """

    tokens: str
    dense: int = 0
    settled: float = 0.0


class RenderingCache:
    """Renderings by what they are made of, within bounds; the least used are forgotten.

    SGLang renders chats on several threads. Two of them may render the same thing at once; what is counted is
    what is remembered, in any case.

    Attributes:
        tokens: of all that are remembered.
    """

    def __init__(self, longest: int, tokens: int = REMEMBERED_TOKENS) -> None:
        """
        Args:
            longest: tokens of a rendering; longer ones are not remembered.
            tokens: of all renderings.
        """
        self._known: OrderedDict[bytes, Rendering] = OrderedDict()
        self._longest, self._most = longest, tokens
        self._lock = Lock()
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: bytes, render: Callable[[], Sequence[int]]) -> Rendering:
        """What ``render`` made under this key, or makes now."""
        with self._lock:
            known = self._known.get(key)
            # What failed may have failed by chance, so it is not remembered for ever.
            if known is not None and (known.tokens or known.settled > monotonic()):
                self._known.move_to_end(key)
                return known
        return self._made(key, Rendering(packed(render())))

    def again(self, key: bytes, render: Callable[[], Sequence[int]]) -> Rendering:
        """What ``render`` makes now. If it is the same, nobody need ask again for a while."""
        rendering = Rendering(packed(render()))
        with self._lock:
            known = self._known.get(key)
        if known is not None and known.tokens == rendering.tokens:
            rendering.settled = monotonic() + SETTLED_SECONDS
        return self._made(key, rendering)

    def _made(self, key: bytes, rendering: Rendering) -> Rendering:
        if not rendering.tokens:
            rendering.settled = monotonic() + SETTLED_SECONDS
        with self._lock:
            before = self._known.pop(key, None)
            self.tokens -= len(before.tokens) if before else 0
            if len(rendering.tokens) <= self._longest:
                self._known[key] = rendering
                self.tokens += len(rendering.tokens)
            while len(self._known) > REMEMBERED or self.tokens > self._most:
                _, forgotten = self._known.popitem(last=False)
                self.tokens -= len(forgotten.tokens)
        return rendering

    def check_integrity(self) -> None:
        """Asserts that what is counted is what is remembered."""
        with self._lock:
            assert self.tokens == sum(len(each.tokens) for each in self._known.values())
            assert len(self._known) <= REMEMBERED and self.tokens <= self._most
