"""Readings without a server: every method's choice of a computed prompt, read by the Hugging Face model."""

from collections.abc import Mapping

from benchmarks.quality.cases import Outcome, outcomes
from benchmarks.quality.methods import Chooser, Method, allocator, at
from benchmarks.quality.model import Model, Prefix
from benchmarks.quality.record import Reading, all_kv


def simulate(
    model: Model,
    prefix: Prefix,
    between: list[int],
    answer: list[int],
    turn: str,
    methods: Mapping[str, Method],
    budgets: tuple[float, ...],
) -> dict[Reading, Outcome]:
    """How the answer fares with all KV, and by every method at every budget; see ``outcomes``."""
    chooser = Chooser(model, prefix)
    readings, cells = {}, {}
    for name, method in methods.items():
        for budget in budgets:
            config = at(method, budget)
            # Methods that come to the same at a budget are computed once.
            same = config.to_json(), budget
            if same not in cells:
                cells[same] = chooser.cells(config, budget)
            readings[Reading(turn, name, allocator(config), budget)] = same
    whole, *others = outcomes(model, prefix, between, answer, list(cells.values()))
    found = dict(zip(cells, others, strict=True))
    return {all_kv(turn): whole} | {reading: found[same] for reading, same in readings.items()}
