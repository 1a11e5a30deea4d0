"""Random requests of every kind, for the soak."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.checks.servers import Server, is_exact
from benchmarks.harness.client import facts, generation, holds_its_budget
from laprox_tools.needle import Sample, Task

# With what a retraction adds to a prompt, it still has fewer tokens than --laprox-min-tokens.
SHORT, MOST_TOKENS = (60, 200), 48
WHOLE_SHARE = 0.4
# The server's own.
BUDGET = 0.2


@dataclass(frozen=True)
class Request:
    """``whole`` is the number of an unpruned prompt, None for a prompt of its own that is pruned."""

    rid: str
    sample: Sample
    whole: int | None
    tokens: int
    options: dict[str, Any] | None


@dataclass(frozen=True)
class Seen:
    """What became of a request; ``exact`` has one entry per answer that came to its end."""

    whole: int | None
    exact: list[bool]
    finish: str = ""


def answered(request: Request, *replies: Any) -> Seen:
    for reply in replies:
        finish = reply["meta_info"]["finish_reason"]
        length = len(reply["output_ids"])
        assert length == request.tokens, f"{length} of {request.tokens} tokens came, then {finish}"
        said = facts(reply)
        assert request.whole is None or not said["pruned"], f"an unpruned prompt was pruned: {said}"
        budget = (request.options or {}).get("budget", BUDGET)
        assert holds_its_budget(said, budget), f"not the slots of budget {budget}: {said}"
    return Seen(request.whole, [is_exact(reply, request.sample) for reply in replies])


def complete(server: Server, request: Request) -> Seen:
    ids = request.sample.prompt_ids()
    return answered(request, server.generate(ids, request.tokens, request.options, rid=request.rid))


def several(server: Server, request: Request) -> Seen:
    ids = request.sample.prompt_ids()
    return answered(request, *server.generate(ids, request.tokens, request.options, sampling={"n": 3}))


def stream(server: Server, request: Request) -> Seen:
    events = server.stream(request.sample.prompt_ids(), request.tokens, request.options, rid=request.rid)
    return answered(request, list(events)[-1])


def abort_running(server: Server, request: Request) -> Seen:
    aborted = False
    for event in server.stream(request.sample.prompt_ids(), 200, request.options, rid=request.rid):
        # Under load one event may bring several tokens.
        if not aborted and event["meta_info"]["completion_tokens"] >= 2:
            server.abort(request.rid)
            aborted = True
    return Seen(request.whole, [])


def abort_early(server: Server, request: Request, state: str) -> Seen:
    body = generation(request.sample.prompt_ids(), request.tokens, request.options, rid=request.rid)
    reply = server.abort_when(state, request.rid, body)
    return Seen(request.whole, [], reply["meta_info"]["finish_reason"].get("message", ""))


# How requests are sent, and how often.
abort_waiting, abort_prefilling = (partial(abort_early, state=state) for state in ("waiting", "prefilling"))
KINDS: dict[Callable[[Server, Request], Seen], int] = {
    **{complete: 8, stream: 4, several: 1},
    **{abort_running: 2, abort_waiting: 2, abort_prefilling: 1},
}


class Traffic:
    """Draws requests to one server, and sends them.

    Attributes:
        whole: prompts that stay unpruned, every second for its length; they come again and again.
        longest: tokens of the longest prompt.
    """

    def __init__(self, seed: int, whole: int, longest: int) -> None:
        self._draw = random.Random(seed)
        self._sent = 0
        self.longest = longest
        self.whole = [self._sample(*(SHORT if i % 2 else (320, longest))) for i in range(whole)]

    def draw(self, server: Server) -> Callable[[], Seen]:
        """A random request, ready to be sent from any thread."""
        send = self._draw.choices(list(KINDS), list(KINDS.values()))[0]
        whole = self._draw.randrange(len(self.whole)) if self._draw.random() < WHOLE_SHARE else None
        if whole is None:
            sample = self._sample(320, self.longest)
            options: dict[str, Any] | None = {"budget": self._draw.choice([0.05, 0.1, 0.2])}
        else:
            sample = self.whole[whole]
            options = None if whole % 2 else {"enabled": False}
        return partial(send, server, self._request(sample, whole, options))

    def draw_cut(self, server: Server) -> Callable[[], Seen]:
        """A long prompt that is aborted before its answer, if it has the server for itself."""
        sample = self._sample(self.longest, self.longest)
        return partial(abort_prefilling, server, self._request(sample, None, None))

    def _request(self, sample: Sample, whole: int | None, options: dict[str, Any] | None) -> Request:
        self._sent += 1
        tokens = self._draw.randint(8, MOST_TOKENS)
        return Request(f"soak-{self._sent}", sample, whole, tokens, options)

    def _sample(self, shortest: int, longest: int) -> Sample:
        return Task(self._draw.getrandbits(32)).batch(1, self._draw.randint(shortest, longest))[0]
