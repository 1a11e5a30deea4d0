"""Where the instructions of a chat prompt are, by what other prompts have in common with it."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laprox_sglang.prefix import (
    SEAM,
    Ask,
    Asks,
    ChatPrompt,
    Found,
    InstructionFinder,
    Renderings,
    common,
    common_end,
    find,
    leading,
    locate,
    merged,
)
from laprox_sglang.renderings import packed

TOKENS = st.lists(st.integers(0, 2), max_size=8)
LONGEST = 100


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
    a, b, c, d = (packed(x) for x in ([*shared, *first], [*shared, *second], first, second))
    length = common(a, b)
    assert length == common(b, a) == len(shared) + common(c, d)
    same = [x == y for x, y in zip(first, second, strict=False)]
    assert common(c, d) == (same.index(False) if False in same else len(same))
    assert common_end(a[::-1], b[::-1]) == length


@given(st.lists(st.integers(0, 1_114_111), max_size=20))
def test_any_token_is_a_character(tokens):
    """Those that stand for halves of characters in other texts, too."""
    assert [ord(c) for c in packed(tokens)] == tokens
    assert packed([55296, 57343, 0]) in packed([1, 55296, 57343, 0])


def test_a_chat_prompt_is_a_list_of_tokens():
    prompt = ChatPrompt([1, 2])
    assert prompt == [1, 2] and isinstance(prompt, list) and prompt.found is None


# Marks of a template, in words of one token; lower case is instructions, Q the other question.
TEXTS = {
    "in front": ("B s a y i t U q q G", "B s a y i t U Q G", "B U Q G", (7, (), 0)),
    "before the last question": (
        "B U x G y E B s a y i t U q G",
        "B s a y i t U Q G",
        "B U Q G",
        (1, ((7, 12),), 0),
    ),
    "in two places": (
        "B s a y i t U q E L a t e r U q G",
        "B s a y i t L a t e r U Q G",
        "B U Q G",
        (6, ((9, 14),), 0),
    ),
    "behind the question": (
        "B s a y i t U q q W r i t e G",
        "B s a y i t U Q W r i t e G",
        "B U Q G",
        (7, ((9, 14),), 0),
    ),
    "on both sides, far": (
        "B U x G y E L a t e r U q q W r i t e G",
        "B L a t e r U Q W r i t e G",
        "B U Q G",
        (1, ((6, 11), (14, 19)), 0),
    ),
    "left out": ("B U x G y E U q G", "B s a y i t U Q G", "B U Q G", (1, (), 5)),
    "left out in part": (
        "B U x G y E t o o l s U q T r G",
        "B t o o l s s a y i t U Q G",
        "B U Q G",
        (1, ((6, 11),), 5),
    ),
    "merged with the question": ("B s a y i t! q q G", "B s a y i t Q G", "B Q G", (6, (), 0)),
    "merged elsewhere": ("B U x G y E s a y i t! q G", "B s a y i t Q G", "B Q G", (1, ((6, 11),), 0)),
}  # fmt: skip


@pytest.mark.parametrize("case", TEXTS)
def test_found(case):
    *texts, (dense, spans, missing) = TEXTS[case]
    words = sorted({word for text in texts for word in text.split()})
    prompt, instructed, bare = (packed([words.index(word) for word in text.split()]) for text in texts)
    found = find(prompt, Renderings(instructed, instructed, bare))
    # A boundary may be taken for instructions, never the other way round.
    assert found.dense == dense and found.missing == missing, found
    covered = {i for a, b in found.spans for i in range(a, b)}
    exact = {i for a, b in spans for i in range(a, b)}
    assert exact <= covered and len(covered - exact) <= 2 * SEAM, found


def test_what_leads_is_dense_where_a_later_message_changes_the_rest():
    """A template that takes the first of all system messages for its own, wherever that stands."""
    later, tools = [70, 71, 72, 73, 74], [2, 3, 4, 5, 2]
    prompt, bare = packed([1, *tools, 6, *later, 8, 9]), packed([1, 9])
    found = find(prompt, Renderings(packed([1, *later, *tools, 9]), packed([1, *tools, 9]), bare))
    assert found == Found(6, ((7, 12),))
    short = packed([1, 70, 71, *tools, 9])
    assert (8, 10) in find(packed([1, *tools, 6, 6, 70, 71, 8, 9]), Renderings(short, short, bare)).spans


def test_a_template_that_renders_nothing_else():
    assert find(packed([1, 2]), Renderings("", "", "")) == Found(0, rendered=False)
    assert find(packed([1, 2, 3]), Renderings("", packed([1, 2, 9]), "")) == Found(2, rendered=False)
    assert Found(0, rendered=False).how == "not_rendered"
    assert [Found(3).how, Found(3, ((5, 6),)).how, Found(3, ((5, 6),), 4).how] == [
        "dense",
        "protected",
        "not_found",
    ]


@given(st.data())
def test_every_prompt(data):
    """Pieces in any order between other text: what is said to be found is there, what is not is counted."""
    draw = data.draw
    prompt = packed(draw(st.lists(st.integers(0, 3), max_size=60)))
    instructed = packed(draw(st.lists(st.integers(0, 3), max_size=40)))
    bare = packed(draw(st.lists(st.integers(0, 3), max_size=5)))
    found = find(prompt, Renderings(instructed, instructed, bare))
    assert 0 <= found.dense <= max(0, len(prompt) - 1) and 0 <= found.missing <= len(instructed)
    edges = [found.dense, *(edge for span in found.spans for edge in span)]
    assert all(a < b for a, b in pairwise(edges)) and edges[-1] <= max(0, len(prompt) - 1)


@given(
    st.lists(st.lists(st.integers(10, 400), min_size=SEAM + 1, max_size=30), min_size=1, max_size=6),
    st.data(),
)
def test_pieces_are_located_wherever_they_are(pieces, data):
    pieces = [[*piece, 1000 + i] for i, piece in enumerate(pieces)]
    order = data.draw(st.permutations(range(len(pieces))))
    prompt: list[int] = [5] * 7
    expected = set()
    for i in order:
        expected |= set(range(len(prompt), len(prompt) + len(pieces[i])))
        prompt += [*pieces[i], *[5] * 9]
    places, missing = locate(packed([token for piece in pieces for token in piece]), packed(prompt), 0)
    covered = {i for a, b in places for i in range(a, b)}
    assert expected <= covered and missing == 0


def test_spans_in_order():
    assert merged([(5, 7), (0, 2), (2, 3), (6, 9), (4, 4)]) == [(0, 3), (5, 9)]
    assert merged([(0, 0), (3, 4)]) == [(0, 0), (3, 4)]


def test_looking_for_what_is_not_there_takes_no_time():
    """A client may choose both texts: many pieces that are nearly there, in a prompt of 500,000 tokens."""
    block = packed([i % 7 if i % 5 else i % 11 for i in range(100_000)])
    prompt = packed([i % 7 if i % 5 else i % 13 for i in range(500_000)])
    before = time.process_time()
    locate(block, prompt, 0)
    assert time.process_time() - before < 2
    for piece in (block[:1] * 50_000 + block, packed([1] * 100_000)):
        before = time.process_time()
        locate(piece, packed([1] * 500_000), 0)
        assert time.process_time() - before < 2


def asks(instructed, bare=lambda: [1, 9, 9], key=b"a") -> Asks:
    ask = Ask(key, instructed)
    return Asks(ask, ask, Ask(b"bare", bare))


def test_the_template_is_asked_once_for_the_same_instructions():
    asked = []

    def other():
        asked.append(1)
        return [1, 2, 3, 9, 9]

    known = InstructionFinder(LONGEST)
    assert known.find([1, 2, 3, 4, 5], asks(other)).dense == 3
    assert known.find([1, 2, 3, 7], asks(other)).dense == 3
    assert len(asked) == 1
    assert known.find([1, 2, 3, 4, 5], asks(other, key=b"b")).dense == 3
    assert len(asked) == 2


def test_a_template_that_renders_the_date_is_asked_again_the_next_day():
    today, asked = [24, 11, 20, 26], []

    def other():
        asked.append(1)
        return [1, *today, 3, 4, 5, 6, 7, 9, 9]

    known = InstructionFinder(LONGEST)
    assert known.find([1, *today, 3, 4, 5, 6, 7, 8, 8], asks(other)) == Found(10)
    today[:] = [25, 12, 21, 27]
    assert known.find([1, *today, 3, 4, 5, 6, 7, 8, 8], asks(other)) == Found(10)
    assert len(asked) == 2
    assert known.find([1, *today, 3, 4, 5, 6, 7, 6, 6], asks(other)) == Found(10)
    assert len(asked) == 2
    # So little is taken for the same.
    today[0] = 26
    assert known.find([1, *today, 3, 4, 5, 6, 7, 8, 8], asks(other)) == Found(10)
    assert len(asked) == 2


def test_turns_that_have_less_of_a_prefix_are_not_asked_for_again_and_again():
    """Where tools move to the last question, first turns and later ones take turns."""
    asked = []

    def other():
        asked.append(1)
        return [1, 50, 51, 52, 53, 2, 9, 9]

    known = InstructionFinder(LONGEST)
    for _ in range(10):
        assert known.find([1, 50, 51, 52, 53, 2, 7, 9], asks(other)).dense == 6
        later = known.find([1, 2, 7, 9, 3, 50, 51, 52, 53, 2, 7, 9], asks(other))
        assert later.dense == 1 and later.how == "protected"
    assert len(asked) == 2


@pytest.mark.parametrize(("prompt", "length"), [([1, 2, 3], 2), ([1, 2, 3, 4], 3), ([1, 2], 1), ([], 0)])
def test_the_last_token_is_never_instructions(prompt, length):
    assert InstructionFinder(LONGEST).find(prompt, asks(lambda: [1, 2, 3, 4, 5])).dense == length
