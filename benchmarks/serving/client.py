"""Sends sessions to a server and keeps the time of everything that comes back."""

import asyncio
import itertools
import random
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from benchmarks.serving.load.workload import Session, first_prompt, next_prompt

POLL_SECONDS = 0.25


class WorkloadError(RuntimeError):
    """A workload did not run as it means to; the message is one line."""


@dataclass(slots=True)
class Reply:
    """One request, and what came back.

    Attributes:
        sent: when, by ``time.perf_counter``.
        turn: of its session, from 0.
        known: tokens of its prompt that the server has seen in the step before.
        chunks: (time, new tokens) of every chunk with tokens.
        ids: generated tokens.
        hit_tokens: prompt tokens that came from the prefix cache; ``host_tokens`` of them from host memory.
        error: what went wrong; empty where nothing did.
    """

    prompt_tokens: int
    sent: float
    turn: int = 0
    known: int = 0
    chunks: list[tuple[float, int]] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    hit_tokens: int = 0
    host_tokens: int = 0
    done: bool = False
    error: str = ""

    @property
    def ttft(self) -> float:
        return self.chunks[0][0] - self.sent

    @property
    def seconds(self) -> float:
        return self.chunks[-1][0] - self.sent

    def gaps(self) -> list[float]:
        """Seconds between tokens; tokens of one chunk share its gap, as in SGLang's client."""
        gaps = []
        for (before, _), (after, tokens) in itertools.pairwise(self.chunks):
            gaps += [(after - before) / tokens] * tokens
        return gaps


class Client:
    """Drives one server.

    Attributes:
        replies: all requests sent so far, in the order of sending.
    """

    def __init__(self, url: str, options: dict[str, Any] | None = None, named: bool = False) -> None:
        """
        Args:
            options: the requests' ``custom_params["laprox"]``.
            named: requests say which session they are of, and a session that is over is closed: for
                ``--enable-session-radix-cache``.
        """
        self.replies: list[Reply] = []
        self._url = url
        self._named = named
        self._options = {} if options is None else {"custom_params": {"laprox": options}}

    def run(self, sessions: Sequence[Session], limit: float, at_once: int = 0) -> None:
        """Sends sessions from their beginning, without pauses longer than theirs, and waits for all.

        Args:
            limit: seconds.
            at_once: sessions under way; 0 starts all of them at time 0.

        Raises:
            WorkloadError: the limit has passed, or a reply is not what was asked for.
        """
        waiting = iter(sessions)
        lanes = [self._lane(waiting, strict=True) for _ in range(at_once or len(sessions))]
        self._drive(lanes, limit)
        steps = sum(len(session.steps) for session in sessions)
        if (done := sum(reply.done for reply in self.replies)) < steps:
            raise WorkloadError(f"not done after {limit:.0f} s: {done} of {steps} replies are complete")

    def keep_going(
        self, sessions: Iterator[Session], starts: Sequence[int], until: Callable[[], bool]
    ) -> None:
        """As many sessions at a time as there are ``starts``, one after the other, until it is enough.

        A request that fails ends its session; it stays among the replies.

        Args:
            starts: the step that the first session of each lane begins with.
        """
        self._drive([self._lane(sessions, start) for start in starts], float("inf"), until)

    def arrive(self, arrivals: Sequence[tuple[float, Session]], until: Callable[[], bool]) -> None:
        """Each session at its second, whatever the server does."""

        async def arrival(second: float, session: Session) -> None:
            await asyncio.sleep(second)
            await self._converse(session)

        self._drive([arrival(*one) for one in arrivals], float("inf"), until)

    def _drive(
        self,
        lanes: Sequence[Coroutine[Any, Any, None]],
        limit: float,
        until: Callable[[], bool] = lambda: False,
    ) -> None:
        try:
            asyncio.run(self._run(lanes, limit, until))
        except (aiohttp.ClientError, OSError) as error:
            raise WorkloadError(f"the connection failed: {error!r}") from error

    async def _run(
        self, lanes: Sequence[Coroutine[Any, Any, None]], limit: float, until: Callable[[], bool]
    ) -> None:
        timeout = aiohttp.ClientTimeout(total=None)
        # A connection each: servers close idle ones, and a request that is sent right then is lost.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=2**20) as http:
            self._http = http
            tasks = [asyncio.create_task(lane) for lane in lanes]
            deadline, pending = time.perf_counter() + limit, set(tasks)
            try:
                while pending and not until() and time.perf_counter() < deadline:
                    finished, pending = await asyncio.wait(pending, timeout=POLL_SECONDS)
                    for task in finished:
                        task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _lane(self, sessions: Iterator[Session], start: int = 0, strict: bool = False) -> None:
        for session in sessions:
            await self._converse(session, min(start, len(session.steps) - 1), strict)
            start = 0

    async def _converse(self, session: Session, start: int = 0, strict: bool = False) -> None:
        source = random.Random(session.seed)
        name = {"session_id": uuid.uuid4().hex} if self._named else {}
        said: list[int] = []
        prompt: list[int] = []
        for turn, step in enumerate(session.steps[start:], start):
            if turn > start:
                await asyncio.sleep(step.pause)
                prompt, known = next_prompt(said, len(prompt), step, source)
            else:
                prompt, known = first_prompt(session, step, source), 0
            reply = await self._send(prompt, step.output, turn, known, name)
            said = prompt + reply.ids
            if reply.error:
                if strict:
                    raise WorkloadError(reply.error)
                break
        if name:
            await self._close(name, reply)

    async def _close(self, name: dict[str, str], last: Reply) -> None:
        try:
            async with self._http.post(self._url + "/close_session", json=name) as response:
                response.raise_for_status()
        except (aiohttp.ClientError, OSError) as error:
            last.error = f"its session was not closed: {error!r}"

    async def _send(self, ids: list[int], output: int, turn: int, known: int, name: dict[str, str]) -> Reply:
        sampling = {"max_new_tokens": output, "temperature": 0, "ignore_eos": True, **self._options}
        body = orjson.dumps({"input_ids": ids, "sampling_params": sampling, "stream": True, **name})
        reply = Reply(len(ids), time.perf_counter(), turn, known)
        self.replies.append(reply)
        try:
            await self._receive(body, reply, output)
        except aiohttp.ClientConnectorError:
            # Nobody is there: no later request will do better.
            raise
        except (aiohttp.ClientError, OSError) as error:
            reply.error = f"the connection broke: {error!r}"
        return reply

    async def _receive(self, body: bytes, reply: Reply, output: int) -> None:
        headers = {"Content-Type": "application/json"}
        meta: dict[str, Any] = {}
        async with self._http.post(self._url + "/generate", data=body, headers=headers) as response:
            if response.status != 200:
                reply.error = f"HTTP {response.status}: {(await response.text())[:300]}"
                return
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                event = orjson.loads(line[6:])
                if "error" in event:
                    reply.error = f"the server answered: {event['error']}"
                    return
                meta = event["meta_info"]
                if event["output_ids"]:
                    reply.chunks.append((time.perf_counter(), len(event["output_ids"])))
                    reply.ids += event["output_ids"]
        got = meta.get("prompt_tokens"), meta.get("completion_tokens"), len(reply.ids)
        if got != (reply.prompt_tokens, output, output):
            reply.error = (
                f"(prompt tokens, generated tokens, tokens streamed) are {got}, not "
                f"{(reply.prompt_tokens, output, output)}: {meta.get('finish_reason')}"
            )
            return
        reply.hit_tokens = meta["cached_tokens"]
        reply.host_tokens = (meta.get("cached_tokens_details") or {}).get("host", 0)
        reply.done = True
