"""What a server and a request say about pruning."""

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from laprox_sglang.views.state import Outcome
from laprox_sglang.views.view import View


def request_facts(
    outcome: Outcome, prompt_tokens: int, cached_tokens: int, return_kept: bool
) -> dict[str, Any]:
    """Facts about one request, for ``meta_info["laprox"]``; plain numbers, lists and strings.

    Args:
        prompt_tokens: length of the prompt as it was sent.
        cached_tokens: how much of it came from the prefix cache.
        return_kept: add ``kept_positions``, ``[L][H]`` lists of token positions.
    """
    plan, view = outcome.plan, outcome.view
    facts: dict[str, Any] = {
        "pruned": view is not None,
        "reason": plan.reason,
        "prompt_tokens": prompt_tokens,
        "cached_tokens": cached_tokens,
        "dense_tokens": plan.start if view else plan.end,
        "budget_effective": plan.slots / plan.length if plan.length else 1.0,
        "kept_cells": None,
        "kept_share": 1.0,
        "erased_share": 0.0,
        "slots_before": plan.length,
        "slots_after": plan.slots,
        "layer_share": None,
    }
    if view is None:
        return facts
    *cu_cells, tokens = view.host_counts.tolist()
    kept, cells = cu_cells[-1], len(cu_cells) - 1
    by_layer = cu_cells[:: view.heads]
    facts["kept_cells"] = kept
    facts["kept_share"] = kept / (cells * plan.length)
    facts["erased_share"] = 1 - tokens / plan.length
    facts["layer_share"] = [(b - a) / kept for a, b in itertools.pairwise(by_layer)]
    if return_kept:
        facts["kept_positions"] = kept_positions(view, cu_cells)
    return facts


def kept_positions(view: View, cu_cells: list[int]) -> list[list[list[int]]]:
    assert view.positions is not None
    positions = view.positions.tolist()
    by_cell = [positions[a:b] for a, b in itertools.pairwise(cu_cells)]
    heads = view.heads
    return [by_cell[i : i + heads] for i in range(0, len(by_cell), heads)]


@dataclass(slots=True)
class Totals:
    """Counts of a scheduler since its start.

    Attributes:
        prunes: views made; a request that was retracted and came again counts again.
        staged: those of them that were packed over slots they were packed from.
        slots_freed: slots that others could have after a view was made and could not before, free or
            evictable, by the allocator's and the tree's own count.
        finished: requests that ended, by what was done: ``pruned`` or why not.
        released: how slots were given back, health probes included: ``finished``, ``retracted``,
            ``aborted_mid_prefill`` or ``aborted_running``.
        slots_held: sum over the ended requests of the slots each referred to at its last step.
    """

    prunes: int = 0
    staged: int = 0
    slots_freed: int = 0
    slots_held: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    released: Counter[str] = field(default_factory=Counter)

    def add_prune(self, freed: int, staged: bool) -> None:
        self.prunes += 1
        self.staged += staged
        self.slots_freed += freed

    def add_finished(self, outcome: Outcome, held: int) -> None:
        """Counts a request that ended, and the slots it referred to at its last step."""
        self.finished["pruned" if outcome.view else outcome.plan.reason or "aborted"] += 1
        self.slots_held += held

    def add_released(self, req: Any, is_insert: bool) -> None:
        """Counts a request whose slots are being given back."""
        if not req.finished():
            how = "retracted"
        elif req.finished_reason.to_json()["type"] != "abort":
            how = "finished"
        else:
            how = "aborted_running" if is_insert else "aborted_mid_prefill"
        self.released[how] += 1

    def to_dict(self) -> dict[str, Any]:
        requests = self.finished.total()
        pruned = self.finished["pruned"]
        return {
            "requests": requests,
            "pruned": pruned,
            "pruned_share": pruned / requests if requests else 0.0,
            "unpruned": {reason: n for reason, n in self.finished.items() if reason != "pruned"},
            "prunes": self.prunes,
            "staged": self.staged,
            "slots_freed": self.slots_freed,
            "slots_held": self.slots_held,
            "released": dict(self.released),
        }
