"""How much of a chat prompt is instructions: what two prompts with the same ones begin with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laprox_sglang import prefix
from laprox_sglang.prefix import ChatPrompt, Instructions, common, leading

TOKENS = st.lists(st.integers(0, 2), max_size=8)


@pytest.mark.parametrize(
    ("roles", "number"),
    [
        ([], 0),
        (["user"], 0),
        (["system"], 1),
        (["developer"], 1),
        (["system", "developer", "system", "user"], 3),
        (["user", "system"], 0),
        (["system", "user", "system"], 1),
        (["system", "assistant", "user"], 1),
        (["tool", "system"], 0),
        (["System"], 0),
    ],
)
def test_instructions_lead(roles, number):
    assert leading(roles) == number


@given(TOKENS, TOKENS, TOKENS)
def test_common(shared, first, second):
    length = common([*shared, *first], [*shared, *second])
    assert length == common([*shared, *second], [*shared, *first]) == len(shared) + common(first, second)
    assert first[: common(first, second)] == second[: common(first, second)]


def test_common_of_less():
    assert common([], [1]) == common([1], [2]) == 0
    assert common([1, 2], [1, 2]) == common([1, 2], [1, 2, 3]) == 2


def test_a_chat_prompt_is_a_list_of_tokens():
    prompt = ChatPrompt([1, 2])
    assert prompt == [1, 2] and isinstance(prompt, list) and prompt.instructions == 0


def test_the_template_is_asked_once_for_the_same_instructions():
    asked = []

    def other():
        asked.append(1)
        return [1, 2, 3, 9, 9]

    known = Instructions()
    assert known.length(b"a", [1, 2, 3, 4, 5], other) == 3
    assert known.length(b"a", [1, 2, 3, 7], other) == 3
    assert len(asked) == 1
    assert known.length(b"b", [1, 2, 3, 4, 5], other) == 3
    assert len(asked) == 2


def test_a_template_that_renders_the_date_is_asked_again_the_next_day():
    today, asked = [24], []

    def other():
        asked.append(1)
        return [1, *today, 3, 9, 9]

    known = Instructions()
    assert known.length(b"a", [1, 24, 3, 5, 6], other) == 3
    today[0] = 25
    assert known.length(b"a", [1, 25, 3, 5, 6], other) == 3
    assert known.length(b"a", [1, 25, 3, 7, 8], other) == 3
    assert len(asked) == 2


@pytest.mark.parametrize(("prompt", "length"), [([1, 2, 3], 2), ([1, 2, 3, 4], 3), ([1, 2], 1), ([], 0)])
def test_the_last_token_is_never_instructions(prompt, length):
    assert Instructions().length(b"a", prompt, lambda: [1, 2, 3, 4, 5]) == length


def test_the_least_used_instructions_are_forgotten(monkeypatch):
    monkeypatch.setattr(prefix, "REMEMBERED", 3)
    asked = []
    known = Instructions()

    def ask(key):
        known.length(key.encode(), [1], lambda: asked.append(key) or [1])

    for key in "abcadab":
        ask(key)
    # d took the place of b, which nobody had asked for since; a was used again and again.
    assert asked == ["a", "b", "c", "d", "b"]
    assert len(known._known) == 3
