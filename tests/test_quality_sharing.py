"""Rules that share one budget over prompts of different length."""

import random

import pytest
import torch

from benchmarks.quality.sharing import RULES, Asked, given_in_turn, total


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
