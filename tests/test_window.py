"""The window's queries, saved as chunks of a prompt pass by among those of others."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laprox_sglang.options.request import Options
from laprox_sglang.views.state import RequestState
from laprox_sglang.views.window import Part, Window

LAYERS, HEADS, DIM = 2, 3, 4


def queries(tokens: int) -> torch.Tensor:
    """``[L, tokens, Hq·D]``, no number twice."""
    return torch.arange(LAYERS * tokens * HEADS * DIM).view(LAYERS, tokens, HEADS * DIM).float()


def forward(window: Window, parts: list[Part], batch: torch.Tensor) -> None:
    window.expect(parts)
    for layer in range(LAYERS):
        window.save(layer, batch[layer])
    window.hand_over(DIM)


def states(number: int) -> list[RequestState]:
    return [RequestState(Options()) for _ in range(number)]


def test_every_request_gets_its_own():
    first, second = states(2)
    batch = queries(10)
    forward(Window(LAYERS, 5), [Part(first, slice(1, 4)), Part(second, slice(9, 10))], batch)
    assert first.queries.shape == (LAYERS, 3, HEADS, DIM) and second.queries.shape == (LAYERS, 1, HEADS, DIM)
    assert torch.equal(first.queries.flatten(2), batch[:, 1:4])
    assert torch.equal(second.queries.flatten(2), batch[:, 9:])


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.data())
def test_chunks_come_to_what_one_pass_would_have_saved(cuts, data):
    """Each chunk lies somewhere in a batch of its own; other requests' windows end meanwhile."""
    whole = queries(sum(cuts))
    (state,) = states(1)
    window, start = Window(LAYERS, 5), 0
    for length in cuts:
        before, behind = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
        other = states(1)[0]
        batch = torch.full((LAYERS, before + length + behind, HEADS * DIM), -1.0)
        batch[:, before : before + length] = whole[:, start : start + length]
        parts = [Part(state, slice(before, before + length))]
        if before:
            parts.insert(0, Part(other, slice(0, before)))
        forward(window, parts, batch)
        assert (other.queries is not None) == bool(before)
        start += length
    assert torch.equal(state.queries.flatten(2), whole)


def test_what_is_saved_does_not_change_with_the_batch_it_came_from():
    (state,) = states(1)
    batch = queries(4)
    expected = batch.clone()
    forward(Window(LAYERS, 5), [Part(state, slice(2, 4))], batch)
    batch.zero_()
    assert torch.equal(state.queries.flatten(2), expected[:, 2:])


def test_what_waits_for_the_next_chunk_holds_no_more_than_itself():
    early, complete = states(2)
    forward(Window(LAYERS, 5), [Part(early, slice(0, 2)), Part(complete, slice(2, 7))], queries(7))
    assert early.queries.untyped_storage().nbytes() == early.queries.nbytes
    assert complete.queries.untyped_storage().nbytes() > complete.queries.nbytes


def test_a_pass_without_a_window_leaves_what_there_is():
    """A batch of others, and passes that nobody announced: warm-up, capture."""
    (state,) = states(1)
    window = Window(LAYERS, 5)
    forward(window, [Part(state, slice(0, 2))], queries(2))
    held = state.queries
    forward(window, [], queries(3))
    window.save(0, queries(5)[0])
    window.hand_over(DIM)
    assert state.queries is held


@pytest.mark.parametrize("again", [False, True])
def test_a_pass_that_never_came_is_forgotten(again):
    """The next batch is announced: nothing of the last is left, saved or not."""
    dropped, state = states(2)
    window = Window(LAYERS, 5)
    window.expect([Part(dropped, slice(0, 2))])
    if again:
        window.save(0, queries(2)[0])
    forward(window, [Part(state, slice(0, 1))], queries(1))
    assert dropped.queries is None and state.queries.shape[1] == 1
