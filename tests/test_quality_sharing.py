"""Rules that share one budget over prompts of different length."""

import json
import random

import pytest
import torch

from benchmarks.harness.provenance import ROOT
from benchmarks.quality.methods.choice import plan_of
from benchmarks.quality.sharing import (
    ALL_KV,
    BUDGETS,
    CONFIG,
    RULES,
    Asked,
    by_share_alone,
    given_in_turn,
    total,
)
from laprox_sglang.options.values import FEWEST_SLOTS


def groups(seed, count):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(count):
        made = []
        for _ in range(draw.randint(2, 6)):
            length, protected = draw.randint(40, 400), draw.randint(1, 20)
            marginal = torch.rand(length - protected).sort(descending=True).values
            share = max(protected + 4, int(draw.uniform(0.03, 0.4) * length))
            made.append(Asked(length, protected, share, marginal / marginal.sum()))
        yield made


@pytest.mark.parametrize("name", [name for name in RULES if "more" not in name])
def test_every_rule_spends_the_same(name, seed):
    for group in groups(seed, 30):
        slots = RULES[name](group)
        assert sum(slots) == total(group)
        assert all(asked.least <= given < asked.length for asked, given in zip(group, slots, strict=True))


def test_one_ranking_by_the_sum_loses_least(seed):
    draw = random.Random(seed)
    for group in groups(seed, 30):
        retained = [
            sum(asked.retained(given) for asked, given in zip(group, slots, strict=True))
            for slots in (
                RULES["one ranking, by sum"](group),
                RULES["same slots each"](group),
                given_in_turn(group, lambda asked, slots: draw.random()),
            )
        ]
        assert retained[0] >= max(retained) - 1e-4


def test_the_served_rule_is_the_one_that_was_measured():
    """Slot by slot: so many at least, sinks and window among them."""
    record = json.loads((ROOT / "benchmarks" / "results" / "quality-sharing.json").read_text())
    rule = f"same share, at least {FEWEST_SLOTS} (more)"
    measured = 0
    for group in record["groups"]:
        for budget, row in zip(BUDGETS, group.values(), strict=True):
            for (length, *_), (slots, *_) in zip(row[ALL_KV], row[rule], strict=True):
                plan = plan_of(CONFIG, budget, length)
                assert plan.least == slots
                # The cells were chosen by the window of the share alone.
                assert plan.window == by_share_alone(budget, length).window
                measured += slots == FEWEST_SLOTS
    assert measured > len(record["groups"]) * len(BUDGETS)
