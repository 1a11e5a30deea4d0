"""Which cells each method keeps of a prompt that a Hugging Face model has computed."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import msgspec
import torch

from benchmarks.quality.model import Model, Prefix
from laprox_sglang.options.request import Options
from laprox_sglang.options.server import Config
from laprox_sglang.scorers.allocators import keep
from laprox_sglang.scorers.prompt import Prompt
from laprox_sglang.scorers.rank import compare_layers, rank
from laprox_sglang.views.plan import Plan, make_plan

BUDGETS = (0.025, 0.05, 0.1, 0.2, 0.4)
# A method at a budget: most are the same at all of them.
Method = Config | Callable[[float], Config]
SERVED = "laprox"
SET_AS_WE_ARE = ", set as we are"
# What the papers say, but for the sinks, which are the server's for all of them.
BASELINES: dict[str, Method] = {
    "laprox (paper)": Config(
        scorer="laprox", allocator="model", floor=0.0, pooling="average", pooling_kernel=7, window=32
    ),
    "snapkv": Config(scorer="snapkv", allocator="uniform", pooling="average", pooling_kernel=7, window=32),
    "ada-kv": Config(
        scorer="snapkv", allocator="layer", floor=0.2, pooling="average", pooling_kernel=7, window=32
    ),
    # They gain by our pooling and window as well.
    f"snapkv{SET_AS_WE_ARE}": Config(scorer="snapkv", allocator="uniform"),
    f"ada-kv{SET_AS_WE_ARE}": Config(scorer="snapkv", allocator="layer", floor=0.2),
    "criticalkv": Config(scorer="criticalkv", allocator="uniform"),
    "keydiff": Config(scorer="keydiff", allocator="uniform"),
    "streamingllm": Config(scorer="streamingllm", allocator="uniform"),
    "random": Config(scorer="random", allocator="uniform"),
}
# Where all of them would take too long.
RIVALS = {name: BASELINES[name] for name in ("snapkv", "ada-kv")}
# Their scores depend on the budget.
SEE_BUDGET = ("criticalkv", "momentkv")


def at(method: Method, budget: float) -> Config:
    return method if isinstance(method, Config) else method(budget)


def allocator(config: Config) -> str:
    """Name of a row's allocator; the floor where there is one."""
    floor = config.method.allocation.floor
    return (
        config.allocator
        if config.allocator == "uniform" or not floor
        else f"{config.allocator}, floor {floor:g}"
    )


def plan_of(config: Config, budget: float, length: int) -> Plan:
    """What the server would do with a prompt of ``length`` tokens."""
    return make_plan(config, Options(budget=budget), length, new_tokens=2)


class Chooser:
    """Chooses cells of one prompt; scores that do not depend on the budget are computed once."""

    def __init__(self, model: Model, prefix: Prefix) -> None:
        self._model, self._prefix = model, prefix
        self._scores: dict[tuple[bytes, int, int], torch.Tensor] = {}

    def choose(
        self, methods: Mapping[str, Method], budgets: tuple[float, ...]
    ) -> dict[tuple[str, float], torch.Tensor]:
        """The kept cells, bool ``[L, H, n]``, of every method at every budget."""
        return {
            (name, budget): self.cells(at(method, budget), budget)
            for name, method in methods.items()
            for budget in budgets
        }

    def cells(self, config: Config, budget: float) -> torch.Tensor:
        """The cells that ``config`` keeps: bool ``[L, H, n]``."""
        length = len(self._prefix.ids)
        plan = plan_of(config, budget, length)
        shape = (self._model.layers, self._model.heads, length)
        if not plan.pruned:
            return torch.ones(shape, dtype=torch.bool, device=self._model.device)
        # Overwritten by the choice.
        scores = self.scores(config, plan).clone()
        kept, _ = keep(scores, plan.slots, config.method.allocation, plan.window + plan.sinks)
        chosen = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
        chosen[kept] = True
        cells = torch.ones(shape, dtype=torch.bool, device=scores.device)
        cells[..., plan.start :] = chosen.view_as(scores)
        return cells

    def scores(self, config: Config, plan: Plan) -> torch.Tensor:
        """float32 ``[L, H, P]`` from ``plan.start`` on, +inf where a cell is kept in any case."""
        # What is done with the scores is no matter here.
        ranked = msgspec.structs.replace(config, allocator="model", floor=None)
        key = ranked.to_json().encode(), plan.window, plan.slots if config.scorer in SEE_BUDGET else 0
        if key not in self._scores:
            shape = (self._model.layers, self._model.heads, plan.length)
            scores = torch.empty(shape, dtype=torch.float32, device=self._model.device)
            sums = rank(self._prompts(plan), config.method.scorer, config.method.pooling, scores)
            # Of use to the allocators whose layers compete, and no matter to the others.
            compare_layers(scores, sums, slice(plan.sinks, plan.length - plan.window))
            self._scores[key] = scores
        return self._scores[key]

    def _prompts(self, plan: Plan) -> Iterator[Prompt]:
        prefix, model = self._prefix, self._model
        for layer in range(model.layers):
            yield Prompt(
                layer,
                prefix.queries[layer][:, -plan.window :].transpose(0, 1).float(),
                prefix.keys[layer].transpose(0, 1).float(),
                prefix.values[layer].transpose(0, 1).float(),
                model.gram[layer],
                model.scale,
                plan.start,
                plan.sinks,
                plan.slots,
                partial(model.output.__getitem__, layer),
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
