"""What the benchmarks and the tests ask of a running SGLang server, and how they read its replies."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import requests

from laprox_sglang.options.values import FEWEST_SLOTS
from laprox_tools.needle import Turn, to_ids

REQUEST_SECONDS = 600
POLL_SECONDS = 0.01


class ClientError(RuntimeError):
    """A server said no, or does not become what was waited for; the message is one line."""


class Client:
    """One server; threads may use it at the same time. All requests are greedy."""

    def __init__(self, url: str) -> None:
        self.url = url

    def post(self, path: str, **body: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=REQUEST_SECONDS)

    def generate(self, ids: list[int], tokens: int = 16, laprox: Any = None, **body: Any) -> Any:
        """The reply of ``/generate``, a list of them with ``n`` above 1.

        Raises:
            ClientError: the reply is not 200.
        """
        response = self.post("/generate", **generation(ids, tokens, laprox, **body))
        check(response)
        return response.json()

    def stream(self, ids: list[int], tokens: int = 16, laprox: Any = None, **body: Any) -> Iterator[Any]:
        """Events of a streaming generation; each repeats all tokens so far.

        Raises:
            ClientError: the reply is not 200.
        """
        request = generation(ids, tokens, laprox, stream=True, **body)
        url = f"{self.url}/generate"
        with requests.post(url, json=request, stream=True, timeout=REQUEST_SECONDS) as response:
            check(response)
            for line in response.iter_lines():
                if line.startswith(b"data: {"):
                    yield json.loads(line[6:])

    def generate_all(self, asked: Sequence[dict[str, Any]], at_once: int) -> list[Any]:
        """Replies in the order of ``asked``, arguments of ``generate``."""
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(lambda request: self.generate(**request), asked))

    def talk(
        self, turns: Sequence[Turn], tokens: int, laprox: Any = None, **body: Any
    ) -> list[tuple[list[int], dict[str, Any]]]:
        """Holds a conversation: the prompt and the reply of every turn."""
        prompt, said = to_ids(["<s>"]), []
        for turn in turns:
            prompt = prompt + turn.ids
            said.append((prompt, self.generate(prompt, tokens, laprox, **body)))
            prompt = prompt + said[-1][1]["output_ids"]
        return said

    def abort(self, rid: str = "", every: bool = False) -> None:
        """Aborts a request, or every one; none is left to abort where the server has died."""
        with suppress(requests.RequestException):
            self.post("/abort_request", rid=rid, abort_all=every)

    def abort_when(self, state: str, rid: str, body: dict[str, Any]) -> Any:
        """Sends a request, and aborts it as soon as the server has requests in ``state``.

        Args:
            state: a count in LaProx's totals: ``waiting`` or ``prefilling``.
            body: of ``/generate``, with this ``rid``.

        Returns:
            The reply, of whatever status; the request may have come to its end before.
        """
        with ThreadPoolExecutor(1) as pool:
            reply = pool.submit(self.post, "/generate", **body)
            while not reply.done():
                # The count may be of others, and this request not yet there to be aborted: again and again.
                if self.laprox()[state]:
                    self.abort(rid)
                time.sleep(POLL_SECONDS)
            return reply.result().json()

    def wait_for(self, state: str, seconds: float = 60) -> None:
        """Waits until the server has requests in ``state``, as ``abort_when`` knows it.

        Raises:
            ClientError: it has none after ``seconds``.
        """
        deadline = time.monotonic() + seconds
        while not self.laprox()[state]:
            if time.monotonic() > deadline:
                raise ClientError(f"no request is {state} after {seconds:.0f} s")
            time.sleep(POLL_SECONDS)

    def flush(self) -> None:
        """Empties the cache; the server must be idle, which it becomes a moment after its last reply.

        Raises:
            ClientError: it does not become idle.
        """
        for _ in range(100):
            if self.post("/flush_cache").ok:
                return
            time.sleep(0.1)
        raise ClientError("the server does not become idle, so its cache cannot be flushed")

    def info(self) -> dict[str, Any]:
        """``/server_info``: what the server was started with, and the state of its scheduler."""
        response = requests.get(f"{self.url}/server_info", timeout=60)
        response.raise_for_status()
        info: dict[str, Any] = response.json()
        return info

    def laprox(self) -> dict[str, Any]:
        """Totals of LaProx; the size of the server's KV pool is added as ``slots``."""
        info = self.info()
        totals: dict[str, Any] = info["internal_states"][0]["laprox"]
        return totals | {"slots": info["max_total_num_tokens"]}


def check(response: requests.Response) -> None:
    if not response.ok:
        raise ClientError(f"HTTP {response.status_code}: {response.text[:300]}")


def generation(ids: list[int], tokens: int, laprox: Any, **body: Any) -> dict[str, Any]:
    """Body of ``/generate``.

    Args:
        tokens: to be generated at most.
        laprox: the request's options; None leaves all to the server.
        body: more of it; ``sampling`` is added to the sampling parameters.
    """
    sampling: dict[str, Any] = {"max_new_tokens": tokens, "temperature": 0}
    if laprox is not None:
        sampling["custom_params"] = {"laprox": laprox}
    return {"input_ids": ids, "sampling_params": sampling | body.pop("sampling", {}), **body}


def backend_of(info: dict[str, Any]) -> str:
    """Attention backend that a server resolved to, by its ``/server_info``; prefill / decode if two."""
    both = info["attention_backend"]
    prefill, decode = (info.get(f"{phase}_attention_backend") or both for phase in ("prefill", "decode"))
    return str(prefill) if prefill == decode else f"{prefill} / {decode}"


def facts(reply: dict[str, Any]) -> dict[str, Any]:
    """What LaProx says about a request, by its last prefill."""
    last: dict[str, Any] = reply["meta_info"]["laprox"][-1]
    return last


def chosen_logprobs(reply: dict[str, Any]) -> list[float]:
    return [entry[0] for entry in reply["meta_info"]["output_token_logprobs"]]


def holds_its_budget(said: dict[str, Any], budget: float) -> bool:
    """Whether a request held exactly the slots, by the allocator's count, that it should have held.

    Args:
        said: its facts, with a server's default window and sinks.
        budget: the fraction that is kept of what its view stands for, if it was pruned.
    """
    before, after = said["slots_before"], said["slots_after"]
    if not said["pruned"]:
        return bool(after == before)
    wanted = max(FEWEST_SLOTS, math.ceil(round(budget * before, 6)))
    return bool(after == wanted == round(said["budget_effective"] * before))
