"""The plan of a prompt: a pure function of numbers that the host knows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from laprox_sglang.plan import make_plan

from laprox_sglang.config import Config, Options

CONFIG = Config(budget=0.1)
REASONS = {None, "disabled", "no_decode", "short", "within_budget"}


def plan(cached=0, end=1000, new_tokens=16, config=CONFIG, **options):
    return make_plan(config, Options(**options), cached, end, new_tokens)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        # start, end, slots, sinks, reason
        ({}, (0, 1000, 100, 4, None)),
        ({"cached": 1}, (1, 1000, 100, 3, None)),
        ({"cached": 4}, (4, 1000, 100, 0, None)),
        ({"cached": 500}, (500, 1000, 50, 0, None)),
        ({"cached": 744}, (744, 1000, 32, 0, None)),
        ({"cached": 745}, (745, 1000, 255, 0, "short")),
        ({"cached": 999}, (999, 1000, 1, 0, "short")),
        ({"end": 256}, (0, 256, 36, 4, None)),
        ({"end": 255}, (0, 255, 255, 4, "short")),
        ({"enabled": False}, (0, 1000, 1000, 4, "disabled")),
        ({"enabled": False, "end": 10}, (0, 10, 10, 4, "disabled")),
        ({"new_tokens": 1}, (0, 1000, 1000, 4, "no_decode")),
        ({"new_tokens": 0}, (0, 1000, 1000, 4, "no_decode")),
        ({"new_tokens": 2}, (0, 1000, 100, 4, None)),
        ({"budget": 1}, (0, 1000, 1000, 4, "within_budget")),
        ({"budget": 1.0}, (0, 1000, 1000, 4, "within_budget")),
        ({"budget": 1000}, (0, 1000, 1000, 4, "within_budget")),
        ({"budget": 999}, (0, 1000, 999, 4, None)),
        ({"budget": 999 / 1000}, (0, 1000, 999, 4, None)),
        ({"budget": 2}, (0, 1000, 36, 4, None)),
        ({"budget": 1e-9, "cached": 10}, (10, 1000, 32, 0, None)),
        ({"keep_prefix": 200}, (200, 1000, 80, 0, None)),
        ({"keep_prefix": 2}, (2, 1000, 100, 2, None)),
        ({"keep_prefix": 200, "cached": 300}, (300, 1000, 70, 0, None)),
        ({"keep_prefix": 999}, (999, 1000, 1, 0, "short")),
        ({"keep_prefix": 5000}, (1000, 1000, 0, 0, "short")),
    ],
)
def test_plan(case, expected):
    assert tuple(plan(**case)) == expected


def test_a_request_overrides_the_server_and_none_does_not():
    config = Config(budget=0.5, keep_prefix=100)
    assert plan(config=config)[:3] == (100, 1000, 450)
    assert plan(config=config, keep_prefix=0)[:3] == (0, 1000, 500)
    assert plan(config=config, budget=0.1)[:3] == (100, 1000, 90)


configs = st.builds(
    lambda window, sinks, spare, budget, keep: Config(
        window=window, sink_tokens=sinks, min_tokens=window + sinks + spare, budget=budget, keep_prefix=keep
    ),
    st.integers(1, 64),
    st.integers(0, 16),
    st.integers(1, 100),
    st.one_of(st.floats(1e-6, 1.0), st.integers(1, 5000)),
    st.integers(0, 300),
)


@given(configs, st.data())
def test_every_plan(config, data):
    end = data.draw(st.integers(1, 4000))
    cached = data.draw(st.integers(0, end - 1))
    options = Options(
        enabled=data.draw(st.booleans()),
        budget=data.draw(st.none() | st.floats(1e-6, 1.0) | st.integers(1, 5000)),
        keep_prefix=data.draw(st.none() | st.integers(0, 5000)),
    )
    new_tokens = data.draw(st.integers(0, 100))
    made = make_plan(config, options, cached, end, new_tokens)
    assert made == make_plan(config, options, cached, end, new_tokens)
    assert made.reason in REASONS and made.pruned == (made.reason is None)
    assert cached <= made.start <= made.end == end and made.length == end - made.start
    # What the tree owns, and the prefix that is to be kept, is not in the private range.
    keep = config.keep_prefix if options.keep_prefix is None else options.keep_prefix
    assert made.start == max(cached, min(keep, end))
    assert made.sinks == max(0, config.sink_tokens - made.start)
    assert 0 <= made.slots <= made.length
    if made.pruned:
        assert config.window + made.sinks <= made.slots < made.length
        assert made.length >= config.min_tokens and options.enabled and new_tokens > 1
    else:
        assert made.slots == made.length
