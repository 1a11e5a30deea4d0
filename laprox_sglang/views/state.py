"""What LaProx knows of one request, from the first look at it on (``req.laprox``)."""

from dataclasses import dataclass, replace

import torch

from laprox_sglang.options.request import Told
from laprox_sglang.options.server import Config
from laprox_sglang.ports import Req
from laprox_sglang.views.plan import Plan, make_plan
from laprox_sglang.views.view import View


@dataclass(slots=True)
class RequestState:
    """
    Attributes:
        options: what the request asked for, and what its chat template knows of it.
        plan: of the prompt as it is now; None before the first look and after its slots were given back.
        view: what it reads of its prompt, from the end of its prefill until its slots are given back.
        queries: ``[L, ≤ W, Hq, D]``, window queries of earlier chunks of a prompt that comes in chunks.
        outcome: what became of the last prefill, kept for the report after release.
        held: slots that the request referred to at its last step, shared ones included.
        computed: the last chunk of its prompt has been launched; until its slots are given back.
    """

    options: Told
    plan: Plan | None = None
    view: View | None = None
    queries: torch.Tensor | None = None
    outcome: "Outcome | None" = None
    held: int = 0
    computed: bool = False

    def settle(self, plan: Plan) -> None:
        """The prefill is over, and this is what its prompt came to."""
        self.plan, self.queries = plan, None
        self.outcome = Outcome(plan, self.view, self.view.slots if self.view else plan.length)

    def exchange(self, view: View | None) -> View | None:
        """It reads ``view`` from now on; the view that it read before."""
        before, self.view = self.view, view
        if before is not None and view is not None:
            assert self.outcome is not None
            self.outcome = replace(self.outcome, view=view, shrinks=self.outcome.shrinks + 1)
        return before

    def release(self) -> None:
        """The slots have been given back."""
        self.plan = self.view = self.queries = None
        self.computed = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a prefill came to; ``view`` is None if the prompt was left whole.

    Attributes:
        first: slots that its columns came to at first.
        shrinks: how often its view was exchanged for a smaller one since.
    """

    plan: Plan
    view: View | None
    first: int
    shrinks: int = 0

    @property
    def settled(self) -> bool:
        """False until the last chunk of a prompt that is to be pruned."""
        return self.view is not None or not self.plan.pruned


def state_of(req: Req) -> RequestState:
    """State of an SGLang ``Req``."""
    state: RequestState | None = getattr(req, "laprox", None)
    if state is None:
        state = RequestState(Told.of(req.sampling_params.custom_params))
        req.laprox = state  # type: ignore[attr-defined]
    return state


def view_of(req: Req) -> View | None:
    """View of an SGLang ``Req``, if it reads one."""
    state: RequestState | None = getattr(req, "laprox", None)
    return state.view if state else None


def plan_of(req: Req, config: Config) -> Plan:
    """Plan of an SGLang ``Req`` that waits or is being prefilled; the same until it gives back its slots."""
    state = state_of(req)
    # SGLang's other lengths do not do: that of the ids to match may be old, that of the chunk is shorter.
    end = len(req.origin_input_ids) + len(req.output_ids)
    if state.plan is None or state.plan.end != end:
        assert state.view is None, "a request that reads a view is planned anew"
        new_tokens = req.sampling_params.max_new_tokens - len(req.output_ids)
        in_tree = not req.skip_radix_cache_insert
        state.plan = make_plan(config, state.options, end, new_tokens, in_tree, state.options.instructions)
    return state.plan
