"""Prompts in the tree by their last use: which are to be written to host memory before they are evicted."""

from typing import NamedTuple

from laprox_sglang.ports import Key, Node


class History(NamedTuple):
    """
    Attributes:
        shared: its first tokens, which the tree had of others when its conversation began.
        session: the one that its last request named.
    """

    key: Key
    shared: int
    session: str | None


class Histories:
    """The tree evicts by the same order, and neither of its cores tells it.

    A prompt is named by the node that it ends at; a later turn of its conversation takes its place.
    """

    def __init__(self) -> None:
        self._known: dict[Node, History] = {}
        self._open: set[str] = set()

    def use(self, node: Node, key: Key, before: Node, shared: int, session: str | None) -> None:
        """A prompt is used.

        Args:
            before: node up to which the tree held it until now. Of a prompt that is asked again it ends
                where the window begins, and is known to nobody.
            shared: as of its ``History``, if no earlier prompt of its conversation is known.
            session: as of its ``History``.
        """
        same = self._known.pop(node, None)
        earlier = self._known.pop(before, None) or same
        self._known[node] = History(key, earlier.shared if earlier else shared, session)

    def forget(self, node: Node) -> None:
        """The tree does not hold it any more."""
        del self._known[node]

    def open(self, session: str) -> None:
        """More is to come of it."""
        self._open.add(session)

    def close(self, session: str) -> None:
        self._open.discard(session)

    def next_evicted(self) -> list[tuple[Node, History]]:
        """Those of no open session before the others; the oldest first."""
        return sorted(self._known.items(), key=lambda known: known[1].session in self._open)
