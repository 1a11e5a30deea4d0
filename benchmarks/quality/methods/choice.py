"""Which cells each method keeps of a prompt that a Hugging Face model has computed."""

from collections.abc import Iterator
from functools import partial

import msgspec
import torch

from benchmarks.quality.methods.reader import Model, Prefix
from benchmarks.quality.methods.variants import Phased, Variant, moments_cells
from laprox_sglang.options.request import Options
from laprox_sglang.options.server import Config
from laprox_sglang.options.values import Budget
from laprox_sglang.scorers import SEE_BUDGET
from laprox_sglang.scorers.allocators import keep
from laprox_sglang.scorers.prompt import Prompt
from laprox_sglang.scorers.rank import compare_layers, rank
from laprox_sglang.views.plan import Plan, make_plan


def allocator(method: Config | Variant) -> str:
    """Name of a row's allocator, with the floor where there is one."""
    config = method.config if isinstance(method, Variant) else method
    floor = config.method.allocation.floor
    has_floor = floor and config.allocator != "uniform"
    return f"{config.allocator}, floor {floor:g}" if has_floor else config.allocator


def plan_of(config: Config, budget: Budget, length: int) -> Plan:
    """What a server of that budget would do with a prompt of ``length`` tokens."""
    # Not as a request's option, which gets no more than its server's budget.
    return make_plan(msgspec.structs.replace(config, budget=budget), Options(), length, new_tokens=2)


class Chooser:
    """Chooses cells of one prompt; scores that do not depend on the budget are computed once.

    Attributes:
        model, prefix: which computed the prompt, and the prompt.
    """

    def __init__(self, model: Model, prefix: Prefix) -> None:
        self.model, self.prefix = model, prefix
        self._scores: dict[tuple[bytes, int, int], torch.Tensor] = {}

    def cells(self, method: Config | Variant, budget: Budget) -> torch.Tensor:
        """The cells that a method keeps: bool ``[L, H, n]``."""
        length = len(self.prefix.ids)
        config, least, moments = method if isinstance(method, Variant) else Variant(method)
        plan = plan_of(config, budget, length)
        if plan.least < least:
            plan = plan_of(config, least, length)
        if moments:
            fewer = plan.least - moments_cells(self.prefix.keys[0].shape[-1])
            plan = plan._replace(least=max(fewer, plan.protected))
        return self.choose(config, plan)

    def choose(self, config: Config, plan: Plan) -> torch.Tensor:
        """The cells that ``plan`` keeps: bool ``[L, H, n]``."""
        shape = (self.model.layers, self.model.heads, len(self.prefix.ids))
        if not plan.pruned:
            return torch.ones(shape, dtype=torch.bool, device=self.model.device)
        # Overwritten by the choice.
        scores = self.scores(config, plan).clone()
        kept, _ = keep(scores, plan.least, config.method.allocation, plan.window + plan.sinks)
        chosen = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
        chosen[kept] = True
        cells = torch.ones(shape, dtype=torch.bool, device=scores.device)
        cells[..., plan.start :] = chosen.view_as(scores)
        return cells

    def scores(self, config: Config, plan: Plan) -> torch.Tensor:
        """float32 ``[L, H, P]`` from ``plan.start`` on, +inf where a cell is kept in any case."""
        # What is done with the scores is no matter here.
        ranked = msgspec.structs.replace(config, allocator="model", floor=None)
        key = ranked.to_json().encode(), plan.window, plan.least if config.scorer in SEE_BUDGET else 0
        if key not in self._scores:
            shape = (self.model.layers, self.model.heads, plan.length)
            scores = torch.empty(shape, dtype=torch.float32, device=self.model.device)
            sums = rank(self._prompts(plan), config.method.scorer, config.method.pooling, scores)
            # Of use to the allocators whose layers compete, and no matter to the others.
            compare_layers(scores, sums, slice(plan.sinks, plan.length - plan.window))
            self._scores[key] = scores
        return self._scores[key]

    def _prompts(self, plan: Plan) -> Iterator[Prompt]:
        prefix, model = self.prefix, self.model
        for layer in range(model.layers):
            yield Phased(
                layer,
                prefix.queries[layer][:, -plan.window :].transpose(0, 1).float(),
                prefix.keys[layer].transpose(0, 1).float(),
                prefix.values[layer].transpose(0, 1).float(),
                model.gram[layer],
                model.scale,
                plan.start,
                plan.sinks,
                plan.least,
                partial(model.output.__getitem__, layer),
                phases=tuple(
                    (end, queries[layer].transpose(0, 1).float()) for end, queries in prefix.phases.items()
                ),
            )


def cells_of(positions: list[list[list[int]]], dense: int, length: int) -> torch.Tensor:
    """bool ``[L, H, length]`` from kept positions ``[L][H]`` as a server reports them.

    Args:
        dense: first tokens, which are kept in every head.
    """
    cells = torch.zeros(len(positions), len(positions[0]), length, dtype=torch.bool)
    cells[..., :dense] = True
    for layer, heads in enumerate(positions):
        for head, kept in enumerate(heads):
            cells[layer, head, kept] = True
    return cells
