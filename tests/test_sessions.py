"""``--enable-session-radix-cache``: histories of open sessions outlive others, behind views too."""

import random
from array import array

import pytest
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixKey

from fakes import VOCABULARY, Scheduler, sglang_context
from laprox_sglang.views.state import view_of
from test_host_tier import run
from test_memory_properties import check

LENGTH = 30


@pytest.fixture(autouse=True)
def context():
    with sglang_context():
        yield


def prompts(seed: int, count: int) -> list[list[int]]:
    draw = random.Random(seed)
    return [[first, *(draw.randrange(VOCABULARY) for _ in range(LENGTH - 1))] for first in range(count)]


def held(scheduler: Scheduler, tokens: list[int]) -> int:
    """How much of a prompt the tree has, on the GPU or in host memory."""
    match = scheduler.tree_cache.match_prefix(MatchPrefixParams(key=RadixKey(array("q", tokens))))
    return match.device_prefix_len + match.host_hit_length


def test_what_is_of_an_open_session_is_evicted_last(seed):
    scheduler = Scheduler(200, tree="sessions")
    closed, opened, none = prompts(seed, 3)
    for tokens, session in ((opened, "open"), (closed, "closed"), (none, None)):
        req = scheduler.arrive(tokens, 3, session=session)
        run(scheduler)
        assert req.laprox.outcome.view is not None
    cache = scheduler.tree_cache
    cache.release_radix_session("closed")
    # By age alone the open one's would go first.
    cache.evict(EvictParams(num_tokens=LENGTH))
    check(scheduler)
    assert [held(scheduler, tokens) for tokens in (closed, none, opened)] == [0, LENGTH, LENGTH]
    cache.evict(EvictParams(num_tokens=cache.evictable_size() - LENGTH))
    check(scheduler)
    assert held(scheduler, opened) == LENGTH


def test_a_prompt_is_its_sessions_while_its_answer_runs(seed):
    """It is evictable from then on, and idle histories are not rather kept."""
    scheduler = Scheduler(200, tree="sessions")
    running, idle = prompts(seed, 2)
    req = scheduler.arrive(running, 8, session="running")
    scheduler.step()
    assert view_of(req) is not None
    other = scheduler.arrive(idle, 2)
    while not other.finished():
        scheduler.step()
    scheduler.tree_cache.evict(EvictParams(num_tokens=LENGTH))
    check(scheduler)
    run(scheduler)
    assert [held(scheduler, tokens) for tokens in (idle, running)] == [0, LENGTH]


def test_what_ends_after_its_session_is_nobodys(seed):
    scheduler = Scheduler(200, tree="sessions")
    late, opened = prompts(seed, 2)
    scheduler.arrive(opened, 2, session="open")
    run(scheduler)
    scheduler.arrive(late, 8, session="late")
    scheduler.step()
    scheduler.tree_cache.release_radix_session("late")
    run(scheduler)
    scheduler.tree_cache.evict(EvictParams(num_tokens=LENGTH))
    check(scheduler)
    assert [held(scheduler, tokens) for tokens in (late, opened)] == [0, LENGTH]


def test_host_memory_forgets_closed_sessions_first(seed):
    """Four histories in room for three: who closes what is over computes nothing again."""
    computed = {}
    for closing in (False, True):
        scheduler = Scheduler(70, tree="sessions", host=1.0, host_policy="write_back")
        first, over, second, third = prompts(seed, 4)
        for tokens, session in ((first, "1"), (over, "over"), (second, "2"), (third, "3")):
            scheduler.arrive(tokens, 2, session=session)
            run(scheduler)
            if closing and session == "over":
                scheduler.tree_cache.release_radix_session("over")
        computed[closing] = sum(LENGTH - held(scheduler, tokens) for tokens in (first, second, third))
    assert computed[True] == 0 < computed[False]


def test_what_is_over_is_written_ahead_first(seed):
    """As it is evicted first."""
    scheduler = Scheduler(102, context=64, tree="sessions", host=1.0, host_policy="write_back")
    opened, over, last = prompts(seed, 3)
    for tokens, session in ((opened, "open"), (over, "over")):
        scheduler.arrive(tokens, 2, session=session)
        run(scheduler)
    scheduler.tree_cache.release_radix_session("over")
    assert scheduler.transfers.written == 0
    # Now less than a thirty-second of the pool is free.
    scheduler.arrive([*last, *range(10)], 2, enabled=False)
    run(scheduler)
    assert scheduler.transfers.written == LENGTH
    scheduler.settle()
    cache = scheduler.tree_cache
    cache.evict(EvictParams(num_tokens=LENGTH))
    assert scheduler.transfers.written == LENGTH and held(scheduler, over) == LENGTH
