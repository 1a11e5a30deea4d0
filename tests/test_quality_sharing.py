"""Rules that share one budget over prompts of different length."""

import json
import random

import pytest
import torch

from benchmarks.harness.provenance import ROOT
from benchmarks.quality import pressed
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
from benchmarks.quality.tasks.task import Case
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


class Served:
    """A server that has so many slots of room, and answers right from 100 kept ones on."""

    def __init__(self, budget=pressed.LENGTH, most=0, room=0):
        self.budget, self.most, self.room, self.asked = budget, most, room, []

    def flush(self):
        self.asked.append("flush")

    def generate_all(self, requests, at_once):
        self.asked.append((at_once, *(request["laprox"].get("budget") for request in requests)))
        return [self.reply(at_once, **request) for request in requests]

    def reply(self, at_once, ids, tokens, laprox, sampling):
        first = min(laprox.get("budget", len(ids)), self.most or self.budget)
        slots = max(self.budget, first - self.room) if self.most and at_once > 1 else first
        said = {"slots_after": slots, "shrinks": int(slots < first)}
        answer = [ids[0]] * tokens if slots >= 100 else [ids[0] + 1] * tokens
        return {"output_ids": answer, "meta_info": {"laprox": [said]}}


@pytest.mark.parametrize(("room", "pressed_slots"), [(250, 50), (150, 150)])
def test_each_prompt_is_asked_with_room_and_with_all_others(room, pressed_slots):
    fixed, elastic, given = Served(), Served(pressed.LEAST, pressed.MOST, room), []

    class Subject:
        server = fixed

        def serve(self, *flags):
            given.extend(flags)
            return elastic

    cases = [Case([word] * pressed.LENGTH, [word, word]) for word in range(3)]
    group = pressed.Servers(Subject()).measure(cases)
    assert given[:4] == ["--laprox-budget", "30", "--laprox-budget-max", "300"]
    assert fixed.asked == [(1, None, None, None), (1, 300, 300, 300), (1, 30, 30, 30)]
    assert elastic.asked == [(1, None, None, None), "flush", (3, None, None, None)]
    right = pressed_slots >= 100
    assert {name: found[0] for name, found in group.items()} == {
        pressed.ALL_KV: (1000, 0, True),
        pressed.FIXED_MOST: (300, 0, True),
        pressed.FIXED_LEAST: (30, 0, False),
        pressed.ROOM: (300, 0, True),
        pressed.PRESSED: (pressed_slots, 1, right),
    }
    *_, last = pressed.rows([group, group])
    name, slots, shrank, exact, all_kv, most, least = last
    assert (name, slots, shrank) == (pressed.PRESSED, str(pressed_slots), "6 of 6")
    assert exact == ("100.0" if right else "0.0") and all_kv == most
    assert all_kv.startswith("+0.0 (" if right else "-100.0 (")
    assert least.startswith("+100.0 (" if right else "+0.0 (")
