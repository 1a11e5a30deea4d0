"""What a server kept of a prompt, as the pictures draw it."""

from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

from laprox_sglang.report.positions import kept_positions
from laprox_tools import CommandError
from laprox_tools.explain.token_text import Piece

WHY_WHOLE = {
    "disabled": "the request says so",
    "short": "it has fewer tokens behind its dense prefix than --laprox-min-tokens",
    "within_budget": "the budget grants it all, or its instructions alone need more than any budget",
    "no_decode": "no more than one token was asked for",
    "uncacheable": "its embeddings were replaced",
    "no_room": "others read the same prompt whole, and a view would only have cost memory",
    "not_in_tree": "the prefix cache did not hold all of it",
}


@dataclass(frozen=True)
class Kept:
    """
    Attributes:
        model: its name.
        share: ``[L, n]``, of the KV heads that kept each position of the prompt; 1 in the dense prefix.
        heads: KV heads of a layer.
        facts: what LaProx says of the request.
        pieces: the prompt's text.
        answer: what the model said.
    """

    model: str
    share: NDArray[numpy.float32]
    heads: int
    facts: dict[str, Any]
    pieces: list[Piece]
    answer: str

    @property
    def layers(self) -> int:
        return int(self.share.shape[0])

    @property
    def tokens(self) -> int:
        return int(self.share.shape[1])

    def of_piece(self, piece: Piece) -> float:
        """Share of the cells of these tokens that were kept, over all layers and heads."""
        return float(self.share[:, piece.start : piece.end].mean())

    def columns(self, width: int) -> NDArray[numpy.float32]:
        """``[L, ≤ width]``: positions that share a column show the one that was kept most."""
        edges = numpy.linspace(0, self.tokens, min(width, self.tokens), endpoint=False).astype(int)
        columns: NDArray[numpy.float32] = numpy.maximum.reduceat(self.share, edges, axis=1)
        return columns

    @property
    def headline(self) -> str:
        said = self.facts
        dense = f", {said['dense_tokens']:,} dense" if said["dense_tokens"] else ""
        return (
            f"{self.model}: {said['slots_after']:,} slots for {said['slots_before']:,} tokens "
            f"({100 * said['budget_effective']:.1f} %){dense}; {self.layers} layers of {self.heads} KV heads"
        )


def kept_of(model: str, reply: dict[str, Any], pieces: list[Piece], tokens: int) -> Kept:
    """
    Raises:
        CommandError: the server has no LaProx, or left the prompt whole.
    """
    entries = [entry for entry in reply["meta_info"].get("laprox") or () if entry]
    if not entries:
        raise CommandError("the server says nothing of LaProx: was it started with --enable-laprox?")
    facts = entries[-1]
    if not facts["pruned"]:
        reason = WHY_WHOLE.get(facts["reason"], facts["reason"])
        raise CommandError(f"nothing to draw, the prompt of {tokens} tokens was left whole: {reason}")
    positions = kept_positions(facts)
    share = numpy.zeros((len(positions), tokens), numpy.float32)
    for layer, heads in enumerate(positions):
        for kept in heads:
            share[layer, kept] += 1 / len(heads)
    share[:, : facts["dense_tokens"]] = 1
    return Kept(model, share, len(positions[0]), facts, pieces, reply["text"])
