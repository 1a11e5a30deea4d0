"""Who gives slots back: the cheapest of all requests, compared with every other way to give as many."""

from itertools import accumulate, pairwise, product
from math import isclose

from hypothesis import given, settings
from hypothesis import strategies as st

from laprox_sglang.views.pressure import AHEAD, AMPLE, PARTS, SCARCE, Holding, first_slots, give_back


@st.composite
def holdings(draw, most=10**4):
    """A view; what its slots carry falls from one to the next."""
    least, room = draw(st.integers(1, most)), draw(st.integers(0, most))
    first = least + room
    slots = draw(st.integers(least, first))
    if draw(st.integers(0, 9)) == 0:
        return Holding(least, slots, first, None)
    falling = sorted(draw(st.lists(st.floats(0, 1), min_size=PARTS, max_size=PARTS)), reverse=True)
    ends = Holding(least, slots, first, None).ends
    carried = accumulate(
        (p * (b - a) for p, (a, b) in zip(falling, pairwise(ends), strict=True)), initial=0.5
    )
    return Holding(least, slots, first, list(carried))


def carries(view: Holding, slots: int) -> float:
    """Share that so many of its best slots carry; of a view that is not known yet as much as it has."""
    if view.carried is None:
        return 1e3 * slots
    for place, (low, high) in enumerate(pairwise(view.ends)):
        if low <= slots <= high and low < high:
            part = view.carried[place + 1] - view.carried[place]
            return view.carried[place] + part * (slots - low) / (high - low)
    return view.carried[0]


def lost(views, left):
    return sum(
        carries(view, view.slots) - carries(view, slots) for view, slots in zip(views, left, strict=True)
    )


@given(st.lists(holdings(), max_size=20), st.integers(0, 10**5))
def test_enough_is_given_and_nobody_goes_below_his_guarantee(views, short):
    left = give_back(views, short)
    assert all(view.least <= slots <= view.slots for view, slots in zip(views, left, strict=True))
    given_back = sum(view.slots for view in views) - sum(left)
    surplus = [view.slots - view.least for view in views]
    assert given_back == min(sum(surplus), max(short, AHEAD * sum(map(bool, surplus))))


@settings(deadline=None)
@given(st.lists(holdings(5), min_size=1, max_size=3), st.integers(0, 30))
def test_nothing_else_would_lose_less(views, short):
    left = give_back(views, short)
    ways = product(*(range(view.least, view.slots + 1) for view in views))
    least = min(lost(views, way) for way in ways if sum(way) == sum(left))
    assert isclose(lost(views, left), least, abs_tol=1e-6)


@settings(deadline=None)
@given(st.lists(holdings(), min_size=2, max_size=6), st.integers(1, 10**4), st.data())
def test_no_slot_that_stays_is_cheaper_than_one_that_goes(views, short, data):
    left = give_back(views, short)
    before = lost(views, left)
    i, j = data.draw(st.permutations(range(len(views))))[:2]
    if left[i] < views[i].slots and left[j] > views[j].least:
        other = list(left)
        other[i] += 1
        other[j] -= 1
        assert lost(views, other) >= before - 1e-6


def test_of_equals_the_first_gives_and_what_is_not_known_gives_last():
    flat = Holding(10, 42, 42, [0.5 + part / 64 for part in range(PARTS + 1)])
    assert give_back([flat, flat], 33) == [10, 41]
    unknown = flat._replace(carried=None)
    assert give_back([unknown, flat, unknown], 48) == [26, 10, 42]
    assert give_back([], 5) == give_back([], 0) == []


def test_a_long_prompt_s_dust_goes_before_a_short_one_s_tail():
    dust = [1.0] * (PARTS + 1)
    rich = [0.9 + part / 320 for part in range(PARTS + 1)]
    views = [Holding(30, 90, 90, rich), Holding(100, 5000, 5000, dust)]
    assert give_back(views, 4000) == [90, 1000]
    assert give_back(views, 4910) == [80, 100]


@given(st.integers(1, 10**5), st.integers(0, 10**5), st.integers(0, 10**6), st.integers(1, 10**6))
def test_a_new_view_has_more_the_more_there_is(least, spare, free, size):
    found = first_slots(least, least + spare, free, size)
    assert least <= found <= least + spare
    assert found <= first_slots(least, least + spare, free + size // 10, size)
    if free >= AMPLE * size:
        assert found == least + spare
    if free <= SCARCE * size:
        assert found == least
