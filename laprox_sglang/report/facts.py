"""What a request is told about its prompt, in ``meta_info["laprox"]``."""

import itertools
from typing import NamedTuple, NotRequired, TypedDict

from laprox_sglang.ports import Req
from laprox_sglang.views.state import Outcome


class Cached(NamedTuple):
    """Tokens of a prompt from the prefix cache; of them those from host memory, and from a storage."""

    tokens: int
    from_host: int = 0
    from_storage: int = 0

    @classmethod
    def of(cls, req: Req) -> "Cached":
        return cls(req.cached_tokens, req.cached_tokens_host, req.cached_tokens_storage)


class KeptPositions(TypedDict):
    """Kept positions: ``int32`` are those of all cells in turn, base64 once they are on their way out."""

    heads: int
    offsets: list[int]
    int32: bytes | str


class Facts(TypedDict):
    """As docs/operating.md says them."""

    pruned: bool
    reason: str | None
    prompt_tokens: int
    cached_tokens: int
    cached_from_host: int
    cached_from_storage: int
    dense_tokens: int
    protected_tokens: int
    instructions: str | None
    budget_effective: float
    kept_cells: int | None
    kept_share: float
    erased_share: float | None
    slots_before: int
    slots_first: int
    slots_after: int
    slots_least: int
    shrinks: int
    layer_share: list[float] | None
    kept_positions: NotRequired[KeptPositions | None]


def request_facts(
    outcome: Outcome,
    prompt_tokens: int,
    cached: Cached,
    return_kept: bool,
    instructions: str | None = None,
) -> Facts:
    """Facts about one request; plain numbers, lists and strings.

    Some are counted on the device. Of a request that has ended before its view was made, with its first token
    say, they are None: the scheduler does not wait for them.

    Args:
        prompt_tokens: length of the prompt as it was sent.
        cached: how much of it came from the prefix cache.
        return_kept: add ``kept_positions``, whose bytes ``positions.encode`` makes a string of.
        instructions: what became of a chat's instructions, as ``prefix.Found.how``.
    """
    plan, view = outcome.plan, outcome.view
    slots = view.slots if view else plan.length
    facts: Facts = {
        "pruned": view is not None,
        "reason": plan.reason,
        "prompt_tokens": prompt_tokens,
        "cached_tokens": cached.tokens,
        "cached_from_host": cached.from_host,
        "cached_from_storage": cached.from_storage,
        "dense_tokens": plan.start if view else plan.end,
        "protected_tokens": plan.inside,
        "instructions": instructions,
        "budget_effective": slots / plan.length if plan.length else 1.0,
        "kept_cells": None,
        "kept_share": 1.0,
        "erased_share": 0.0,
        "slots_before": plan.length,
        "slots_first": outcome.first,
        "slots_after": slots,
        "slots_least": plan.least,
        "shrinks": outcome.shrinks,
        "layer_share": None,
    }
    if view is None:
        return facts
    facts["kept_cells"] = kept = view.kept_cells
    facts["kept_share"] = slots / plan.length
    if not view.host_counts.there:
        facts["erased_share"] = None
        if return_kept:
            facts["kept_positions"] = None
        return facts
    *cu_cells, tokens = view.host_counts.tolist()
    facts["erased_share"] = 1 - tokens / plan.length
    facts["layer_share"] = [(b - a) / kept for a, b in itertools.pairwise(cu_cells[:: view.heads])]
    if return_kept:
        assert view.positions is not None
        facts["kept_positions"] = {
            "heads": view.heads,
            "offsets": cu_cells,
            "int32": view.positions.tobytes(),
        }
    return facts
