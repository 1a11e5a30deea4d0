"""How many requests fit: by hand, beside the benchmark's record, and in words."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laprox_sglang.options.request import Options
from laprox_sglang.options.server import Config
from laprox_sglang.views.capacity import (
    REASONS,
    SHORT_ANSWER,
    Hold,
    Load,
    expectation,
    plan_of_load,
    viewed,
    whole,
)
from laprox_sglang.views.plan import make_plan
from laprox_tools.plan.advice import SCORING_STEPS

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
K = 1024


def record(file: str, workload: str, server: str) -> dict:
    rows = json.loads((RESULTS / file).read_text())["rows"]
    return next(row for row in rows if row["workload"] == workload)[server]


def hold(load: Load, **options) -> Hold:
    config = Config(**options)
    return viewed(load, plan_of_load(config, load))


def test_by_hand():
    load = Load(prompt=8000, output=500, shared=3000)
    assert whole(load) == (3000, 5500, 5500)
    # Nothing stays dense: 400 slots of view and 500 of tail; all of the prompt while it comes in.
    assert hold(load, budget=0.05) == (0, 900, 8500)
    # What stays dense of what is shared is there once, the rest for each.
    assert hold(load, budget=0.05, keep_prefix=2000) == (2000, 300 + 500, 6500)
    assert hold(load, budget=0.05, keep_prefix=4000) == (3000, 1000 + 200 + 500, 5500)
    # A budget as large as that changes nothing.
    assert hold(load, budget=1.0) == whole(load)
    assert hold(Load(200, 50), budget=0.05) == whole(Load(200, 50))


@pytest.mark.parametrize(
    ("slots", "requests"), [(8499, 0), (8500, 1), (9399, 1), (9400, 2), (8500 + 10 * 900, 11)]
)
def test_one_comes_in_beside_those_that_run(slots, requests):
    assert hold(Load(8000, 500), budget=0.05).requests(slots) == requests


def test_stock_as_measured_with_a_small_pool():
    """(b): 35 requests of 32K in and 4K out in 262,144 slots."""
    load = Load(32 * K, 4 * K)
    measured = record("sglang-0.5.17/serving-h200.json", "b", "stock")
    assert whole(load).requests(262_144) == measured["peak_concurrency"]
    ours = record("serving-h200.json", "b", "laprox")
    assert hold(load, budget=0.05).requests(262_144) >= ours["peak_concurrency"] == ours["requests"]


def test_stock_as_measured_with_a_shared_prefix():
    """(c-open): 4 groups of 32 that share 8K each, in all that the card has."""
    servers = json.loads((RESULTS / "serving-h200.json").read_text())["servers"]["full"]
    load, others = Load(16 * K, 512, shared=8 * K), 3 * 8 * K
    measured = record("serving-h200.json", "c-open", "stock")["peak_concurrency"]
    assert whole(load).requests(servers["stock"]["slots"] - others) == measured
    ours = record("serving-h200.json", "c-open", "laprox")
    assert hold(load, budget=0.05).requests(servers["laprox"]["slots"]) >= ours["peak_concurrency"]


@given(
    st.integers(1, 50_000),
    st.integers(1, 5000),
    st.floats(0.001, 1),
    st.integers(0, 60_000),
    st.integers(0, 10**6),
    st.data(),
)
def test_every_load(prompt, output, budget, keep, slots, data):
    load = Load(prompt, output, data.draw(st.integers(0, prompt - 1)))
    made = hold(load, budget=budget, keep_prefix=keep)
    assert made.common <= load.shared and 0 < made.each <= made.entry
    # A request alone needs what it needs on stock, no less and no more.
    assert made.common + made.entry == prompt + output
    requests = made.requests(slots)
    assert requests == 0 or made.common + made.entry + (requests - 1) * made.each <= slots
    assert made.common + made.entry + requests * made.each > slots


def test_the_start_says_what_to_expect():
    said = expectation(Config(budget=0.05), 871_775, 40_960, 2)
    assert said.startswith("A prompt of 8,192 tokens pins 410 slots while it is answered: ")
    stock, ours = (
        whole(Load(8192, 512)).requests(871_775),
        hold(Load(8192, 512), budget=0.05).requests(871_775),
    )
    assert f"room for {ours:,} at once; unpruned, {stock:,}." in said
    assert f"below 256 tokens, answers below about {SHORT_ANSWER}" in said
    assert "\n" not in said
    # In fp8 a step over all of a prompt takes half as long, and scoring does not.
    assert f"answers below about {2 * SHORT_ANSWER}" in expectation(Config(), 871_775, 40_960, 1)


@pytest.mark.parametrize(("slots", "context"), [(600, 32_768), (40_000, 400), (1, 4), (10**6, 10**6)])
@pytest.mark.parametrize("budget", [0.05, 1.0, 100])
def test_the_start_has_something_to_say_of_every_server(slots, context, budget):
    said = expectation(Config(budget=budget), slots, context, 2)
    assert "It pays where" in said and ("stay whole" in said or "at once" in said)


def test_every_reason_of_a_plan_of_numbers_has_words():
    reasons = {
        make_plan(Config(budget=budget), Options(), end, new).reason
        for budget in (0.1, 1.0)
        for end in (10, 1000)
        for new in (1, 10)
    }
    assert reasons - {None} == set(REASONS)


def test_scoring_costs_what_is_said():
    """In decode steps over the same prompt: its K and V once, at an H100's 3.35 TB/s."""
    rows = json.loads((RESULTS / "kernels-prune-h100.json").read_text())["rows"]
    milliseconds = next(row["ms"] for row in rows if row["case"] == "32768 tokens, 5% kept, all three, apart")
    steps = milliseconds / (32_768 * 131_072 / 3.35e12 * 1e3)
    assert round(steps) == SCORING_STEPS < SHORT_ANSWER
