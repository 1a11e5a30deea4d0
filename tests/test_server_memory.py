"""Freed slots are free: for admission, under pressure, and without a prefix cache."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
import zmq

from benchmarks.harness.client import facts
from benchmarks.harness.server import RETURN_KEPT
from benchmarks.quality.methods.reader import Model, Prefix
from laprox_sglang.report.events import AnyEvent, Shrunk, decode
from laprox_tools.needle import MODEL_PATH, Task
from prompts import EXACT, cells_in
from server import PYTHON_CORE, Server

pytestmark = pytest.mark.full

POOL, LENGTH, TOKENS = 2600, 1000, 100
SECONDS = 300
Told = dict[str, Any]


@pytest.fixture
def prompts(seed: int) -> list[list[int]]:
    found = [(sample.prompt_ids() + [3] * 20)[:LENGTH] for sample in Task(seed).batch(8, LENGTH)]
    assert {len(ids) for ids in found} == {LENGTH}
    return found


def together(server: Server, prompts: list[list[int]], apart: int = 0, **body: Any) -> tuple[int, list[Told]]:
    """How many requests were generating at once, by when their tokens arrived; and their replies.

    Args:
        apart: tokens of the first one's answer between those that come.
    """
    turns = [Event() for _ in prompts]

    def ask(number: int) -> tuple[float, float, Told]:
        if number and apart:
            assert turns[number].wait(SECONDS)
        arrivals = []
        for event in server.stream(prompts[number], TOKENS, rid=str(number), **body):
            arrivals.append((time.monotonic(), event))
            if number == 0 and apart:
                for turn in turns[: 1 + event["meta_info"]["completion_tokens"] // apart]:
                    turn.set()
        return arrivals[0][0], *arrivals[-1]

    with ThreadPoolExecutor(len(prompts)) as pool:
        spans = list(pool.map(ask, range(len(prompts))))
    peak = max(sum(start <= at <= end for start, end, _ in spans) for at, _, _ in spans)
    return peak, [reply for _, _, reply in spans]


FIXED = ("--enable-laprox", "--laprox-budget", "0.1")


@pytest.mark.parametrize(
    "flags, core, expected", [((), {}, 2), (FIXED, PYTHON_CORE, 8)], ids=["stock", "laprox"]
)
def test_freed_slots_admit_others(
    prompts: list[list[int]], figures: list[str], flags: tuple[str, ...], core: dict[str, str], expected: int
) -> None:
    with Server(*flags, tokens=POOL, **core) as server:
        peak, _ = together(server, prompts)
    figures.append(f"8 prompts of 1,000 tokens in 2,600 slots, {' '.join(flags) or 'stock'}: {peak} at once")
    assert peak == expected


class Shrinking:
    """A server of two budgets, and who listens to its events."""

    def __init__(self, server: Server, subscriber: zmq.Socket[bytes]) -> None:
        self.server = server
        self._subscriber = subscriber

    def events(self) -> Iterator[AnyEvent]:
        while self._subscriber.poll(500):
            yield decode(self._subscriber.recv())

    def sizes(self, replies: list[Told]) -> list[list[int]]:
        """Slots that each view had, one after the other."""
        sizes = [[facts(reply)["slots_first"]] for reply in replies]
        for event in self.events():
            if isinstance(event, Shrunk):
                sizes[int(event.rid)].append(event.slots)
        for slots, said in zip(sizes, map(facts, replies), strict=True):
            assert (said["shrinks"], said["slots_after"]) == (len(slots) - 1, slots[-1])
        return sizes

    def alone(self, prompt: list[int], slots: int, prefix: Prefix) -> torch.Tensor:
        """Cells of a view that has so many slots from the first: bool ``[L, H, n]``."""
        self.server.flush()
        reply = self.server.generate(prompt, 2, {"budget": slots, "return_kept": True})
        assert facts(reply)["slots_after"] == facts(reply)["slots_first"] == slots
        return cells_in(reply, prefix)


@pytest.fixture
def shrinking(tmp_path: Path) -> Iterator[Shrinking]:
    endpoint = f"ipc://{tmp_path}/events"
    flags = ("--laprox-budget-max", "0.6", *RETURN_KEPT)
    with (
        Server(*FIXED, *flags, "--laprox-events", endpoint, tokens=POOL) as server,
        zmq.Context() as context,
        context.socket(zmq.SUB) as subscriber,
    ):
        subscriber.subscribe(b"")
        subscriber.connect(endpoint)
        found = Shrinking(server, subscriber)
        # From here on everything is heard.
        server.generate([1] * 300, 2, rid="0")
        assert list(found.events())
        server.flush()
        yield found


# Words whose log-probs are compared: of an unlikely one it moves with the view, however sure the model is.
WORDS = list(range(0, 415, 25))


class Reader:
    """The oracle that reads an answer over views of one prompt, each from some step on."""

    def __init__(self, oracle: Model, prefix: Prefix, reply: Told, views: Sequence[torch.Tensor]) -> None:
        self._oracle, self._prefix, self._views = oracle, prefix, views
        self._ids = reply["output_ids"]
        words = reply["meta_info"]["output_token_ids_logprobs"]
        self._said = torch.tensor([[logprob for logprob, *_ in token] for token in words])

    def differences(self, starts: Sequence[int]) -> torch.Tensor:
        """Of the log-probs, the largest of every token.

        Args:
            starts: steps from which on the second view is read, the third, and so on.
        """
        kept = self._views[0][:, :, None].repeat(1, 1, len(self._ids) - 1, 1)
        for step, view in zip(starts, self._views[1:], strict=False):
            kept[:, :, step:] = view[:, :, None]
        (logprobs,) = self._oracle.follow(self._prefix, self._ids[:-1], kept[None])
        return (logprobs[:, WORDS] - self._said).abs().amax(-1)

    def starts(self) -> list[int]:
        """When each view came into use, by the first token that all before it do not explain."""
        starts: list[int] = []
        while len(off := (self.differences(starts) > EXACT.logprob).nonzero()):
            assert len(starts) < len(self._views) - 1, (
                f"no view explains token {int(off[0])}, behind {starts}"
            )
            # Of two that came between two steps the first one is never read.
            starts.append(int(off[0]) - 1)
        return starts


def test_an_answer_whose_view_shrinks_is_that_of_the_oracle(
    shrinking: Shrinking, prompts: list[list[int]], figures: list[str]
) -> None:
    """Each token over the cells that its view had at that step: those of a view that was never larger."""
    asked = {"return_logprob": True, "token_ids_logprob": WORDS, "laprox": {"return_kept": True}}
    peak, replies = together(shrinking.server, prompts, 5, **asked, sampling={"ignore_eos": True})
    assert peak == len(prompts)
    (reply, *_), (slots, *_) = replies, shrinking.sizes(replies)
    oracle = Model(MODEL_PATH)
    prefix = oracle.prefill(prompts[0])
    views = [shrinking.alone(prompts[0], count, prefix) for count in slots]
    assert torch.equal(views[-1], cells_in(reply, prefix))
    reader = Reader(oracle, prefix, reply, views)
    starts = reader.starts()
    assert any(step > 0 for step in starts), slots
    figures.append(
        f"an answer over views of {slots} slots, those behind the first from steps {starts} on: log-probs "
        f"differ from the oracle's by at most {reader.differences(starts).max():.1e}, by "
        f"{reader.differences([]).max():.1f} from those over the first view alone"
    )


def test_without_a_radix_cache(seed: int) -> None:
    prompts = [sample.prompt_ids() for sample in Task(seed).batch(6, 900)]
    flags = (
        "--enable-laprox",
        "--laprox-budget",
        "0.1",
        "--disable-radix-cache",
        "--chunked-prefill-size",
        "400",
    )
    with Server(*flags, tokens=6000) as server:
        alone = [server.generate(ids, 24) for ids in prompts]
        assert all(facts(reply)["pruned"] for reply in alone)
        mixed: list[dict[str, Any]] = [
            {"ids": ids, "tokens": 24, "laprox": {"enabled": i % 2 == 0}} for i, ids in enumerate(prompts)
        ]
        together = server.generate_all(mixed, at_once=6)
        assert [facts(reply)["pruned"] for reply in together] == [i % 2 == 0 for i in range(6)]
        assert [r["output_ids"] for r in together[::2]] == [r["output_ids"] for r in alone[::2]]
        assert server.laprox()["available_slots"] == 6000
