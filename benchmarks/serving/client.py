"""Sends scripts to a server and keeps the time of everything that comes back.

SGLang's own client is not used for this: it counts a chunk only if it has text, and random weights generate
token ids for which the small tokenizer has no word.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from benchmarks.serving.workload import Script

POLL_SECONDS = 0.25


class WorkloadError(RuntimeError):
    """A workload did not run as it means to; the message is one line."""


@dataclass(slots=True)
class Reply:
    """One request, and what came back.

    Attributes:
        sent: when, by ``time.perf_counter``.
        chunks: (time, new tokens) of every chunk with tokens.
        ids: generated tokens.
        hit_tokens: prompt tokens that came from the prefix cache.
        turn: of its conversation, from 0.
    """

    prompt_tokens: int
    sent: float
    chunks: list[tuple[float, int]] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    hit_tokens: int = 0
    done: bool = False
    turn: int = 0

    @property
    def ttft(self) -> float:
        return self.chunks[0][0] - self.sent

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

    def __init__(self, url: str, output: int, options: dict[str, Any] | None) -> None:
        """
        Args:
            output: tokens that every turn generates.
            options: the requests' ``custom_params["laprox"]``.
        """
        self.url = url
        self.replies: list[Reply] = []
        self._output = output
        self._sampling: dict[str, Any] = {"max_new_tokens": output, "temperature": 0, "ignore_eos": True}
        if options is not None:
            self._sampling["custom_params"] = {"laprox": options}

    def run(
        self,
        scripts: Sequence[Script],
        limit: float,
        clients: int = 0,
        tick: Callable[[list[Reply]], bool] | None = None,
    ) -> None:
        """Sends all scripts and waits for their ends.

        Args:
            limit: seconds.
            clients: scripts under way at once; 0 starts all of them at time 0.
            tick: called a few times a second; True drops what is still under way.

        Raises:
            WorkloadError: the limit has passed, or a reply is not what was asked for.
        """
        try:
            asyncio.run(self._run(scripts, limit, clients or len(scripts), tick))
        except (aiohttp.ClientError, OSError) as error:
            raise WorkloadError(f"the connection failed: {error!r}") from error

    @property
    def done(self) -> int:
        return sum(reply.done for reply in self.replies)

    @property
    def tokens(self) -> int:
        return sum(len(reply.ids) for reply in self.replies)

    async def _run(
        self,
        scripts: Sequence[Script],
        limit: float,
        clients: int,
        tick: Callable[[list[Reply]], bool] | None,
    ) -> None:
        turns = sum(script.turns for script in scripts)
        # Encoding takes milliseconds a prompt, which must not stagger the arrivals.
        bodies = [self._body(script.prompt) for script in scripts]
        slots = asyncio.Semaphore(clients)
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=2**20) as session:
            tasks = [
                asyncio.create_task(self._converse(session, slots, script, body))
                for script, body in zip(scripts, bodies, strict=True)
            ]
            deadline = time.perf_counter() + limit
            try:
                pending: set[asyncio.Task[None]] = set(tasks)
                while pending:
                    finished, pending = await asyncio.wait(pending, timeout=POLL_SECONDS)
                    for task in finished:
                        task.result()
                    if tick is not None and tick(self.replies):
                        break
                    if time.perf_counter() > deadline:
                        raise WorkloadError(
                            f"not done after {limit:.0f} s: {self.done} of {turns} replies are complete"
                        )
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _converse(
        self, session: aiohttp.ClientSession, slots: asyncio.Semaphore, script: Script, body: bytes
    ) -> None:
        async with slots:
            history = script.prompt
            reply = await self._send(session, history, body)
            for turn, addition in enumerate(script.additions, 1):
                history = history + reply.ids + addition
                reply = await self._send(session, history, self._body(history), turn)

    def _body(self, ids: list[int]) -> bytes:
        return orjson.dumps({"input_ids": ids, "sampling_params": self._sampling, "stream": True})

    async def _send(
        self, session: aiohttp.ClientSession, ids: list[int], body: bytes, turn: int = 0
    ) -> Reply:
        reply = Reply(len(ids), time.perf_counter(), turn=turn)
        self.replies.append(reply)
        headers = {"Content-Type": "application/json"}
        async with session.post(self.url + "/generate", data=body, headers=headers) as response:
            if response.status != 200:
                raise WorkloadError(f"HTTP {response.status}: {(await response.text())[:300]}")
            meta: dict[str, Any] = {}
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                event = orjson.loads(line[6:])
                if "error" in event:
                    raise WorkloadError(f"the server answered: {event['error']}")
                meta = event["meta_info"]
                if event["output_ids"]:
                    reply.chunks.append((time.perf_counter(), len(event["output_ids"])))
                    reply.ids += event["output_ids"]
        got = meta.get("prompt_tokens"), meta.get("completion_tokens"), len(reply.ids)
        if got != (len(ids), self._output, self._output):
            raise WorkloadError(
                f"(prompt tokens, generated tokens, tokens streamed) are {got}, not "
                f"{(len(ids), self._output, self._output)}: {meta.get('finish_reason')}"
            )
        reply.hit_tokens = meta["cached_tokens"]
        reply.done = True
        return reply
