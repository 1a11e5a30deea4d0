"""The plan of a prompt: a pure function of numbers that the host knows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laprox_sglang.options.request import Instructions, Options
from laprox_sglang.options.server import WINDOW, Config
from laprox_sglang.options.values import AUTO, FEWEST_SLOTS, SYSTEM, counts_tokens
from laprox_sglang.views.plan import make_plan

CONFIG = Config(budget=0.1)
# What a request asks for is not cut.
ALL = Config(budget=1.0)
# A server that grants a number; and one that prunes prompts no longer than a view.
SIXTY, SHORT_TOO = Config(budget=60), Config(budget=0.1, min_tokens=29)
REASONS = {None, "disabled", "uncacheable", "no_decode", "short", "within_budget"}


def plan(end=1000, new_tokens=16, in_tree=True, config=CONFIG, **options):
    return make_plan(config, Options(**options), end, new_tokens, in_tree)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        # start, end, slots, sinks, reason
        ({}, (0, 1000, 100, 4, None)),
        ({"keep_prefix": 1}, (1, 1000, 100, 3, None)),
        ({"keep_prefix": 2}, (2, 1000, 100, 2, None)),
        ({"keep_prefix": 4}, (4, 1000, 100, 0, None)),
        ({"keep_prefix": 200}, (200, 1000, 80, 0, None)),
        ({"keep_prefix": 300}, (300, 1000, 70, 0, None)),
        # Of a short prompt no fraction is less than 64 slots, or all of it; a number is.
        ({"keep_prefix": 744}, (744, 1000, 64, 0, None)),
        ({"keep_prefix": 744, "budget": 1e-9}, (744, 1000, 64, 0, None)),
        ({"keep_prefix": 744, "budget": 63}, (744, 1000, 63, 0, None)),
        ({"keep_prefix": 744, "budget": 0.1, "config": SIXTY}, (744, 1000, 60, 0, None)),
        ({"end": 65, "config": SHORT_TOO}, (0, 65, 64, 4, None)),
        ({"end": 64, "config": SHORT_TOO}, (0, 64, 64, 4, "within_budget")),
        ({"end": 63, "config": SHORT_TOO}, (0, 63, 63, 4, "within_budget")),
        ({"keep_prefix": 745}, (745, 1000, 255, 0, "short")),
        ({"keep_prefix": 999}, (999, 1000, 1, 0, "short")),
        ({"keep_prefix": 1000}, (1000, 1000, 0, 0, "short")),
        ({"keep_prefix": 5000}, (1000, 1000, 0, 0, "short")),
        # The template has not been asked: a raw prompt has no instructions.
        ({"keep_prefix": SYSTEM}, (0, 1000, 100, 4, None)),
        ({"end": 256}, (0, 256, 64, 4, None)),
        ({"end": 255}, (0, 255, 255, 4, "short")),
        ({"enabled": False}, (0, 1000, 1000, 4, "disabled")),
        ({"enabled": False, "end": 10, "in_tree": False}, (0, 10, 10, 4, "disabled")),
        ({"in_tree": False}, (0, 1000, 1000, 4, "uncacheable")),
        ({"in_tree": False, "new_tokens": 1}, (0, 1000, 1000, 4, "uncacheable")),
        ({"new_tokens": 1}, (0, 1000, 1000, 4, "no_decode")),
        ({"new_tokens": 0}, (0, 1000, 1000, 4, "no_decode")),
        ({"new_tokens": 2}, (0, 1000, 100, 4, None)),
        ({"budget": 1, "config": ALL}, (0, 1000, 1000, 4, "within_budget")),
        ({"budget": 1.0, "config": ALL}, (0, 1000, 1000, 4, "within_budget")),
        ({"budget": 1000, "config": ALL}, (0, 1000, 1000, 4, "within_budget")),
        ({"budget": 999, "config": ALL}, (0, 1000, 999, 4, None)),
        ({"budget": 999 / 1000, "config": ALL}, (0, 1000, 999, 4, None)),
        ({"budget": 2}, (0, 1000, 28, 4, None)),
        ({"budget": 2, "keep_prefix": 10}, (10, 1000, 24, 0, None)),
    ],
)
def test_plan(case, expected):
    made = plan(**case)
    assert (*made[:4], made.reason) == expected


@pytest.mark.parametrize(
    ("slots", "window"),
    [(28, 8), (67, 8), (68, 24), (900, 24)],
)
def test_a_small_view_is_not_filled_by_its_window(slots, window):
    assert plan(budget=slots, config=ALL)[2:5] == (slots, 4, window)
    # What somebody asks for they get.
    assert plan(budget=slots, config=Config(budget=1.0, window=24)).window == 24
    assert plan(budget=slots, config=Config(budget=1.0, window=3)).window == 3


def test_a_request_overrides_the_server_and_none_does_not():
    config = Config(budget=0.5, keep_prefix=100)
    assert plan(config=config)[:3] == (100, 1000, 450)
    assert plan(config=config, keep_prefix=0)[:3] == (0, 1000, 500)
    assert plan(config=config, keep_prefix=SYSTEM)[:3] == (0, 1000, 500)
    assert plan(config=config, budget=0.1)[:3] == (100, 1000, 90)


@pytest.mark.parametrize("server", [0.1, 40, 2000, 1.0])
@pytest.mark.parametrize("asked", [13_107, 2, 0.05, 0.5, 1.0, 1])
@pytest.mark.parametrize("end", [300, 1000, 13_107, 131_072])
def test_of_two_budgets_the_smaller_counts_for_each_prompt(server, asked, end):
    """13,107 tokens are a tenth of 131,072, and all of a prompt that is no longer than that."""
    config = Config(budget=server)
    made = plan(end=end, config=config, budget=asked)
    alone = [plan(end=end, config=Config(budget=budget)).least for budget in (server, asked)]
    assert made.least == min(alone)
    assert (server, asked, end) != (0.1, 13_107, 13_107) or made.least == 1311


@pytest.mark.parametrize(
    ("budget", "most", "options", "expected"),
    [
        # least, most, window
        (0.1, None, {}, (100, 100, 24)),
        (0.1, 0.1, {}, (100, 100, 24)),
        (0.1, 0.3, {}, (100, 300, 24)),
        (0.1, 1.0, {}, (100, 1000, 24)),
        (0.1, 250, {}, (100, 250, 24)),
        # Of a short prompt the number may be less than the share, and then it is nothing more.
        (0.1, 50, {}, (100, 100, 24)),
        (50, 0.1, {}, (50, 100, 8)),
        # Both have the 64 slots that no fraction is less than.
        (0.01, 0.05, {}, (64, 64, 8)),
        (0.01, 0.2, {}, (64, 200, 8)),
        (0.01, 63, {}, (64, 64, 8)),
        (50, 0.01, {}, (50, 64, 8)),
        # What is promised is a window and its sinks at least; their window is that of the promised size.
        (2, 27, {}, (28, 28, 8)),
        (2, 300, {}, (28, 300, 8)),
        # A request has at most what it asks for, and is promised no more than others are.
        (0.1, 0.3, {"budget": 0.3}, (100, 300, 24)),
        (0.1, 0.3, {"budget": 0.2}, (100, 200, 24)),
        (0.1, 0.3, {"budget": 0.1}, (100, 100, 24)),
        (0.1, 0.3, {"budget": 0.07}, (70, 70, 24)),
        (0.1, 0.3, {"budget": 0.05}, (64, 64, 8)),
        (0.1, 0.3, {"budget": 150}, (100, 150, 24)),
        (0.1, 0.3, {"budget": 50}, (50, 50, 8)),
        (0.1, 0.3, {"keep_prefix": 300}, (70, 210, 24)),
        # Its sinks are dense: 64 slots are a window and 40 more.
        (0.1, 0.3, {"keep_prefix": 500}, (64, 150, 24)),
        (0.1, 0.3, {"enabled": False}, (1000, 1000, 24)),
    ],
)
def test_a_view_may_be_larger_while_there_is_room(budget, most, options, expected):
    made = plan(config=Config(budget=budget, budget_max=most), **options)
    assert (made.least, made.most, made.window) == expected


def test_a_prompt_that_is_left_whole_after_all():
    made = plan(keep_prefix=200)
    assert tuple(made.whole("no_room")) == (200, 1000, 800, 0, 24, "no_room", (), 0)
    assert made.pruned and not made.whole("no_room").pruned


@pytest.mark.parametrize(
    ("spans", "options", "expected"),
    [
        # slots, window, spans, reason
        ([(500, 540)], {}, (100, 8, ((500, 540),), None)),
        # They count in the budget, and a view has room for them beside its sinks and its longest window.
        ([(500, 700)], {}, (228, 8, ((500, 700),), None)),
        ([(500, 600), (700, 720)], {"budget": 2}, (148, 8, ((500, 600), (700, 720)), None)),
        ([(500, 512)], {}, (100, 24, ((500, 512),), None)),
        # What is dense, a sink or in the window is there already.
        ([(2, 10)], {}, (100, 24, ((4, 10),), None)),
        ([(0, 4), (100, 110)], {}, (100, 24, ((100, 110),), None)),
        ([(50, 110)], {"keep_prefix": 100}, (90, 24, ((100, 110),), None)),
        ([(50, 100)], {"keep_prefix": 100}, (90, 24, (), None)),
        ([(970, 1000)], {}, (100, 24, ((970, 976),), None)),
        ([(970, 1000)], {"budget": 30}, (34, 8, ((970, 992),), None)),
        ([(990, 995), (2000, 2010)], {}, (100, 24, (), None)),
        # All that there is, and more than there is memory for.
        ([(4, 976)], {}, (1000, 8, ((4, 976),), "within_budget")),
        ([(100, 372)], {}, (300, 8, ((100, 372),), None)),
        ([(100, 373)], {}, (1000, 8, ((100, 373),), "within_budget")),
    ],
)  # fmt: skip
def test_instructions_behind_other_messages_are_protected(spans, options, expected):
    made = make_plan(CONFIG, Options(**options), 1000, 16, True, Instructions(tuple(spans), 300))
    assert (made.least, made.window, made.spans, made.reason) == expected
    assert made.protected == made.sinks + made.window + sum(b - a for a, b in made.spans) <= made.least


def test_a_retracted_request_protects_the_same_positions():
    spans = Instructions(((500, 540), (985, 1000)))
    first, again = (make_plan(CONFIG, Options(), end, 16, True, spans) for end in (1000, 1050))
    assert first.spans == ((500, 540), (985, 992)) and again.spans == ((500, 540), (985, 1000))


def larger(budget, most):
    """``most``, or what may stand in its place behind ``budget``."""
    comparable = most is not None and counts_tokens(budget) == counts_tokens(most)
    return max(budget, most) if comparable else most


configs = st.builds(
    lambda window, sinks, spare, budget, most, keep: Config(
        window=window,
        sink_tokens=sinks,
        min_tokens=(WINDOW if window == AUTO else window) + sinks + spare,
        budget=budget,
        budget_max=larger(budget, most),
        keep_prefix=keep,
    ),
    st.integers(1, 64) | st.just(AUTO),
    st.integers(0, 16),
    st.integers(1, 100),
    st.one_of(st.floats(1e-6, 1.0), st.integers(1, 5000)),
    st.none() | st.floats(1e-6, 1.0) | st.integers(1, 5000),
    st.integers(0, 300) | st.just(SYSTEM),
)


@given(configs, st.data())
def test_every_plan(config, data):
    end = data.draw(st.integers(1, 4000))
    options = Options(
        enabled=data.draw(st.booleans()),
        budget=data.draw(st.none() | st.floats(1e-6, 1.0) | st.integers(1, 5000)),
        keep_prefix=data.draw(st.none() | st.integers(0, 5000) | st.just(SYSTEM)),
    )
    new_tokens, in_tree = data.draw(st.integers(0, 100)), data.draw(st.booleans())
    edges = sorted(data.draw(st.sets(st.integers(0, 4100), max_size=8)))
    spans = tuple(zip(edges[::2], edges[1::2], strict=False))
    instructions = Instructions(spans, data.draw(st.integers(1100, 5000)))
    made = make_plan(config, options, end, new_tokens, in_tree, instructions)
    assert made == make_plan(config, options, end, new_tokens, in_tree, instructions)
    assert made.reason in REASONS and made.pruned == (made.reason is None)
    assert 0 <= made.start <= made.end == end and made.length == end - made.start
    # Nothing that others have in the tree has a say.
    keep = config.keep_prefix if options.keep_prefix is None else options.keep_prefix
    assert made.start == (0 if keep == SYSTEM else min(keep, end))
    assert made.sinks == max(0, config.sink_tokens - made.start)
    assert 0 <= made.least <= made.length and made.surplus >= 0
    granted = [options.slots(budget, made.length) for budget in (config.budget, config.most)]
    assert made.most == max(made.least, *granted) <= made.length or not made.pruned
    budgets = [config.budget if options.budget is None else options.budget, config.budget]
    assert made.least >= min(made.length, FEWEST_SLOTS) or any(map(counts_tokens, budgets))
    if made.pruned:
        assert config.longest_window + made.sinks <= made.least < made.length
        # What the start has compiled.
        assert made.window in config.windows and 1 <= made.window <= config.longest_window
        assert made.protected <= made.least <= instructions.most
        protected = {*range(made.start, made.start + made.sinks), *range(end - made.window, end)}
        protected |= {i for a, b in made.spans for i in range(a, b)}
        assert len(protected) == made.protected
        assert {i for a, b in spans for i in range(a, b) if made.start <= i < end} <= protected
        # Something is left to be chosen.
        assert config.window != AUTO or spans or made.protected < made.least
        assert made.length >= config.min_tokens and options.enabled and in_tree and new_tokens > 1
        # The prefix cache may hold all but the window: what it offers never reaches into the dense prefix.
        assert made.end - config.longest_window > made.start
    else:
        assert made.least == made.most == made.length
