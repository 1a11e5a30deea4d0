"""What a server has done: the one source of ``/server_info`` and of ``/metrics``."""

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import NamedTuple

from laprox_sglang.report.facts import Facts
from laprox_sglang.views.view import View

HOW_RELEASED = ("finished", "retracted", "aborted_running", "aborted_mid_prefill")


class Pool(NamedTuple):
    """Slots of the KV pool, as the allocator and the tree count them; and of a host tier, if there is one."""

    slots: int
    available: int
    evictable: int
    host_slots: int = 0
    host_available: int = 0

    @property
    def pinned(self) -> int:
        return self.slots - self.available - self.evictable


@dataclass(slots=True)
class Totals:
    """Counts of a scheduler since its start, and of the views that are there now.

    Attributes:
        prunes: views made; a request that was retracted and came again counts again.
        staged: those of them that were packed over slots they were packed from.
        slots_freed: slots that others could have after a view was made and could not before, free or
            evictable, by the allocator's and the tree's own count; less by ``slots_taken``.
        slots_taken: slots of views that freed nothing, as others held the prompt whole.
        shrinks, shrunk_slots: how often a view was exchanged for a smaller one, and the slots given back.
        finished: requests that ended, by what was done: ``pruned``, why not, or ``aborted`` amid their
            prefill. Those that were aborted while they waited are not counted. The sums below are over
            those that were not aborted amid their prefill, and of what their facts say.
        released: how slots were given back, health probes included: ``finished``, ``retracted``,
            ``aborted_mid_prefill`` or ``aborted_running``.
        slots_held: slots that each referred to at its last step.
        prompt_tokens, cached_tokens: length of the prompts, and what of it came from the prefix cache.
        cached_from_host, cached_from_storage: what of that came from host memory, or a storage behind it.
        kept_tokens: tokens' worth of KV that they read of their prompts: dense prefix and view, or all.
        kept_cells: cells of pruned prompts that were kept, by layer. This and the three below are without
            requests that ended before their view was made.
        scored_cells: cells of pruned prompts in one layer, kept or not.
        viewed_tokens, erased_tokens: tokens that views stand for, and those of them that no cell was kept of.
        views, view_slots: views that running requests read now, and their slots.
        surplus_slots: those of them beyond what requests were promised, which they give back where the pool
            runs short.
        spared_slots: slots that these requests would hold more if each held its prompt whole.
    """

    prunes: int = 0
    staged: int = 0
    slots_freed: int = 0
    slots_taken: int = 0
    shrinks: int = 0
    shrunk_slots: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    released: Counter[str] = field(default_factory=Counter)
    slots_held: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    cached_from_host: int = 0
    cached_from_storage: int = 0
    kept_tokens: int = 0
    kept_cells: Counter[int] = field(default_factory=Counter)
    scored_cells: int = 0
    viewed_tokens: int = 0
    erased_tokens: int = 0
    views: int = 0
    view_slots: int = 0
    surplus_slots: int = 0
    spared_slots: int = 0

    def add_prune(self, freed: int, staged: bool) -> None:
        self.prunes += 1
        self.staged += staged
        self.slots_freed += freed
        self.slots_taken += max(0, -freed)

    def exchange(self, before: View | None, view: View | None) -> None:
        """A request reads ``view`` where it read ``before``."""
        for changed, sign in ((before, -1), (view, 1)):
            if changed is not None:
                self.views += sign
                self.view_slots += sign * changed.slots
                self.surplus_slots += sign * changed.surplus
                self.spared_slots += sign * changed.spared
        if before is not None and view is not None:
            self.shrinks += 1
            self.shrunk_slots += before.slots - view.slots

    def add_released(self, how: str) -> None:
        """Counts a request whose slots are being given back."""
        self.released[how] += 1
        # A request that is aborted amid its prefill never reaches ``add_finished``, so it is counted here.
        self.finished["aborted"] += how == "aborted_mid_prefill"

    def add_finished(self, said: Facts, held: int) -> None:
        """Counts a request that ended, by its facts, and the slots it referred to at its last step."""
        self.finished[said["reason"] or "pruned"] += 1
        self.slots_held += held
        self.prompt_tokens += said["prompt_tokens"]
        self.cached_tokens += said["cached_tokens"]
        self.cached_from_host += said["cached_from_host"]
        self.cached_from_storage += said["cached_from_storage"]
        self.kept_tokens += said["dense_tokens"]
        if said["pruned"]:
            self.kept_tokens += said["slots_after"]
            cells, shares, erased = said["kept_cells"], said["layer_share"], said["erased_share"]
            if cells is None or shares is None or erased is None:
                # It ended before its view was made.
                return
            # A share is a quotient of whole numbers, so this is the number again.
            self.kept_cells.update({layer: round(share * cells) for layer, share in enumerate(shares)})
            self.scored_cells += round(cells / said["kept_share"]) // len(shares)
            self.viewed_tokens += said["slots_before"]
            self.erased_tokens += round(erased * said["slots_before"])

    def to_dict(self) -> dict[str, object]:
        requests, pruned = self.finished.total(), self.finished["pruned"]
        numbers = {each.name: getattr(self, each.name) for each in fields(self) if each.type is int}
        return numbers | {
            "requests": requests,
            "pruned": pruned,
            "pruned_share": pruned / requests if requests else 0.0,
            "unpruned": {reason: n for reason, n in self.finished.items() if n and reason != "pruned"},
            "released": dict(self.released),
            "kept_cells": [self.kept_cells[layer] for layer in sorted(self.kept_cells)],
        }
