"""Prompts that share, and conversations: the tree stays exact, every turn has a view of its own."""

import random
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from benchmarks.harness.client import facts
from benchmarks.harness.server import RETURN_KEPT
from benchmarks.quality.methods.reader import Model
from laprox_sglang.options.server import WINDOW
from laprox_tools.needle import CLASSES, DIGITS, MODEL_PATH, SENTENCE, Task, Turn, to_ids
from prompts import OPTED_OUT, difference
from server import PYTHON_CORE, Server

SHARED = 700
# The same in every run: fresh ones scatter by more than is asked of them.
QUALITY_SEED = 0
CONVERSATIONS, TURNS = 8, 6
BUDGET = 0.05
CHUNK = 300


@dataclass(frozen=True)
class Told:
    """What one server said.

    Attributes:
        sharing: to prompts that share their first tokens.
        talks: to conversations, of each turn its prompt and its reply.
    """

    sharing: list[dict[str, Any]]
    talks: list[list[tuple[list[int], dict[str, Any]]]]


def sharing_prompts(seed: int) -> list[list[int]]:
    """Three that share 700 tokens, the last of them again, and that one with more behind its reply."""
    first, *others = (sample.prompt_ids() for sample in Task(seed).batch(3, 1200))
    prompts = [first]
    for i, other in enumerate(others):
        # What follows begins with a word that no other has there.
        unlike = next(word for word in CLASSES["VERB"][i * 10 :] if word != first[SHARED])
        prompts.append([*first[:SHARED], unlike, *other[SHARED + 1 :]])
    return [*prompts, prompts[-1]]


def conversations() -> list[list[Turn]]:
    task = Task(QUALITY_SEED)
    return [task.conversation([100, *[12] * (TURNS - 1)], few_words=i % 2 == 0) for i in range(CONVERSATIONS)]


def told(server: Server, seed: int, options: Any = None) -> Told:
    prompts = sharing_prompts(seed)
    sharing = [server.generate(ids, 8) for ids in prompts]
    more = prompts[-1] + sharing[-1]["output_ids"] + prompts[0][-100:]
    sharing.append(server.generate(more, 8))
    server.flush()
    with ThreadPoolExecutor(4) as pool:
        talks = list(pool.map(partial(server.talk, tokens=DIGITS, laprox=options), conversations()))
    server.flush()
    return Told(sharing, talks)


@pytest.fixture(scope="module")
def stock(seed: int) -> Told:
    with Server("--enable-cache-report") as server:
        return told(server, seed)


@pytest.fixture(scope="module")
def server(stock: Told) -> Iterator[Server]:
    """With LaProx's and SGLang's defaults; one server at a time."""
    with Server("--enable-laprox") as server:
        yield server


@pytest.fixture(scope="module")
def laprox(server: Server, seed: int) -> Told:
    return told(server, seed, {"budget": BUDGET})


def hits(replies: list[dict[str, Any]]) -> list[int]:
    return [reply["meta_info"]["cached_tokens"] for reply in replies]


def test_shared_tokens_hit_as_on_stock(stock: Told, laprox: Told, seed: int) -> None:
    again = len(sharing_prompts(seed)[-1])
    assert hits(stock.sharing) == [0, SHARED, SHARED, again - 1, again + 7]
    # Its last W tokens are computed in any case, and nothing is cached of what was generated over a view.
    assert hits(laprox.sharing) == [0, SHARED, SHARED, again - WINDOW, again]
    assert all(facts(reply)["pruned"] for reply in laprox.sharing)


def test_conversations_hit_all_of_their_last_prompt(stock: Told, laprox: Told) -> None:
    for talk_of_stock, talk_of_laprox in zip(stock.talks, laprox.talks, strict=True):
        earlier = [len(prompt) for prompt, _ in talk_of_stock[:-1]]
        assert hits([reply for _, reply in talk_of_stock])[1:] == [n + DIGITS - 1 for n in earlier]
        # Several conversations begin with the same words.
        assert facts(talk_of_laprox[0][1])["cached_tokens"] < SENTENCE
        for (prompt, reply), before in zip(talk_of_laprox[1:], earlier, strict=True):
            said = facts(reply)
            assert said["pruned"] and said["dense_tokens"] == 0, said
            assert said["slots_before"] == len(prompt)
            assert said["cached_tokens"] == min(before, len(prompt) - WINDOW)


def test_conversations_are_answered_as_by_stock(stock: Told, laprox: Told, figures: list[str]) -> None:
    turns = conversations()

    def right(side: Told) -> list[list[bool]]:
        return [
            [reply["output_ids"] == turn.answer_ids for (_, reply), turn in zip(talk, asked, strict=True)]
            for talk, asked in zip(side.talks, turns, strict=True)
        ]

    def per_cent(answers: list[list[bool]]) -> float:
        return 100 * sum(map(sum, answers)) / (CONVERSATIONS * TURNS)

    whole, pruned = right(stock), right(laprox)
    by_turn = {
        name: [sum(answers) for answers in zip(*side, strict=True)]
        for name, side in (("stock", whole), (BUDGET, pruned))
    }
    figures.append(f"exact answers by turn, of {CONVERSATIONS} conversations each: {by_turn}")
    assert per_cent(pruned) >= per_cent(whole) - 3


def test_a_conversation_that_opts_out_is_stock(server: Server, stock: Told) -> None:
    server.flush()
    replies = [reply for _, reply in server.talk(conversations()[0], DIGITS, OPTED_OUT)]
    expected = [reply for _, reply in stock.talks[0]]
    assert [facts(reply)["reason"] for reply in replies] == ["disabled"] * TURNS
    assert hits(replies)[1:] == hits(expected)[1:]
    assert [r["output_ids"] for r in replies] == [r["output_ids"] for r in expected]


@pytest.mark.parametrize("dense", [0, 150])
def test_a_running_request_pins_prefix_view_and_tail(server: Server, seed: int, dense: int) -> None:
    """By the allocator's and the tree's own count; what is in the tree beside can be had by others."""
    server.flush()
    ids = Task(seed).batch(1, 1000)[0].prompt_ids()
    pinned = []
    for event in server.stream(ids, 200, {"budget": 0.1, "keep_prefix": dense}):
        if event["meta_info"]["completion_tokens"] in (10, 20, 30):
            totals = server.laprox()
            if totals["running"]:
                had = totals["available_slots"] + totals["evictable_slots"]
                tail = totals["running_tokens"] - len(ids)
                pinned.append(totals["slots"] - had - tail)
    assert pinned and set(pinned) == {dense + -(-(len(ids) - dense) // 10)}
    after = server.laprox()
    assert after["available_slots"] + after["evictable_slots"] == after["slots"]
    assert after["evictable_slots"] == len(ids), "the prompt, and nothing of what was generated"


class TestInChunks:
    """Overlap scheduling, prompts in several chunks, budget 1.0 where a request asks for nothing less.

    SGLang's tree is the one in Python here; stock's, and that of all other turns, is the one in Rust.
    """

    @pytest.fixture(scope="class")
    def server(self, stock: Told) -> Iterator[Server]:
        flags = ("--enable-laprox", "--laprox-budget", "1.0", "--chunked-prefill-size", str(CHUNK))
        with Server(*flags, *RETURN_KEPT, **PYTHON_CORE) as server:
            yield server

    def test_whole_conversations_are_answered_as_by_stock(self, server: Server, stock: Told) -> None:
        for turns, expected in list(zip(conversations(), stock.talks, strict=True))[:3]:
            replies = [reply for _, reply in server.talk(turns, DIGITS)]
            assert [facts(reply)["reason"] for reply in replies] == ["within_budget"] * TURNS
            assert [r["output_ids"] for r in replies] == [r["output_ids"] for _, r in expected]
            assert hits(replies)[1:] == hits([reply for _, reply in expected])[1:]
        assert server.laprox()["prunes"] == 0

    def test_every_turn_is_answered_as_by_the_oracle(
        self, server: Server, seed: int, figures: list[str]
    ) -> None:
        draw = random.Random(seed)
        asked = []
        for budget, dense in ((40, 0), (0.1, 0), (0.2, 130), (0.5, 40)):
            turns = Task(draw.random()).conversation(
                [draw.randint(40, 80), draw.randint(2, 40), draw.randint(2, 40)]
            )
            options = {"budget": budget, "keep_prefix": dense, "return_kept": True}
            # They may begin with the same words.
            server.flush()
            asked.append(server.talk(turns, 17, options, return_logprob=True))
            for turn, (prompt, reply) in enumerate(asked[-1]):
                said = facts(reply)
                assert said["pruned"] and said["dense_tokens"] == dense, said
                before = len(asked[-1][turn - 1][0]) if turn else 0
                assert said["cached_tokens"] == min(before, len(prompt) - WINDOW)
        # Torch runs only now: beside a busy server it would starve it.
        oracle = Model(MODEL_PATH)
        worst = max(
            difference(oracle, oracle.prefill(prompt), reply) for talk in asked for prompt, reply in talk
        )
        figures.append(f"{len(asked)} conversations of 3 turns: log-probs differ by at most {worst:.1e}")


# Two conversations fit, and what they are answered with.
POOL_FOR_TWO = 4_800
HOST_FLAGS = ("--enable-hierarchical-cache", "--hicache-ratio", "8", "--hicache-storage-backend", "file")


class TestWithAHostTier:
    """Eight conversations by turns in a pool for two: what is idle lies in host memory, or in files."""

    @pytest.fixture(scope="class")
    def server(self, stock: Told) -> Iterator[Server]:
        with tempfile.TemporaryDirectory(prefix="laprox-storage-") as files:
            variables = {"SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR": files}
            with Server("--enable-laprox", *HOST_FLAGS, tokens=POOL_FOR_TWO, **variables) as server:
                yield server

    @pytest.fixture(scope="class")
    def talks(self, server: Server) -> list[list[tuple[list[int], dict[str, Any]]]]:
        """Turn by turn, so that before the next one seven others have come."""
        prompts = [to_ids(["<s>"]) for _ in range(CONVERSATIONS)]
        said: list[list[tuple[list[int], dict[str, Any]]]] = [[] for _ in prompts]
        for turn in range(TURNS):
            for number, turns in enumerate(conversations()):
                prompt = prompts[number] + turns[turn].ids
                reply = server.generate(prompt, DIGITS, {"budget": BUDGET})
                said[number].append((prompt, reply))
                prompts[number] = prompt + reply["output_ids"]
        return said

    def test_every_turn_is_a_view_and_answered_as_by_stock(
        self, stock: Told, talks: list[list[tuple[list[int], dict[str, Any]]]], figures: list[str]
    ) -> None:
        def right(talks: list[list[tuple[list[int], dict[str, Any]]]]) -> int:
            return sum(
                reply["output_ids"] == turn.answer_ids
                for talk, turns in zip(talks, conversations(), strict=True)
                for (_, reply), turn in zip(talk, turns, strict=True)
            )

        assert all(facts(reply)["pruned"] for talk in talks for _, reply in talk)
        figures.append(f"exact answers with a host tier: {right(talks)}, stock {right(stock.talks)} of 48")
        assert right(talks) >= 0.97 * right(stock.talks)

    def test_later_turns_compute_what_a_pool_for_all_would(
        self, talks: list[list[tuple[list[int], dict[str, Any]]]], figures: list[str]
    ) -> None:
        computed = least = from_host = 0
        for talk in talks:
            for (before, _), (prompt, reply) in pairwise(talk):
                meta = reply["meta_info"]
                computed += len(prompt) - meta["cached_tokens"]
                least += len(prompt) - min(len(before), len(prompt) - WINDOW)
                from_host += meta["cached_tokens_details"]["host"]
        figures.append(
            f"later turns computed {computed} tokens, {computed / least:.3f} of {least} in a pool for all; "
            f"{from_host} came from host memory"
        )
        assert computed <= 1.15 * least and from_host > 20_000

    def test_what_was_flushed_comes_from_files(
        self, server: Server, talks: list[list[tuple[list[int], dict[str, Any]]]]
    ) -> None:
        # SGLang waits for its writes: it is refused until then.
        server.flush()
        assert server.laprox()["available_slots"] == POOL_FOR_TWO
        prompt, before = talks[-1][-1]
        reply = server.generate(prompt, DIGITS, {"budget": BUDGET})
        assert reply["meta_info"]["cached_tokens_details"]["storage"] > 1_000
        assert facts(reply)["pruned"] and reply["output_ids"] == before["output_ids"]

    def test_a_weight_update_empties_gpu_and_host_but_not_the_files(
        self, server: Server, talks: list[list[tuple[list[int], dict[str, Any]]]]
    ) -> None:
        """The keys of a storage carry the model's name, not its weights."""
        server.flush()
        server.generate(talks[0][-1][0], DIGITS)
        server.flush()
        response = server.post("/update_weights_from_disk", model_path=str(MODEL_PATH))
        assert response.json()["success"], response.text
        reply = server.generate(talks[0][-1][0], DIGITS)
        details = reply["meta_info"]["cached_tokens_details"]
        assert details["host"] == details["device"] == 0 and details["storage"] > 1_000
