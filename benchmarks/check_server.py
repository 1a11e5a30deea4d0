"""Servers for the checks: several at a time, on the GPU where there is one."""

import itertools
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests
import torch

from laprox_sglang.needle import MODEL_PATH, Sample, Task
from server import FLAGS, Launch, ServerError, start, wait_until_up

ON_GPU = torch.cuda.is_available()
# The servers share one GPU: each takes no more of it than --max-total-tokens asks for.
GPU_FLAGS = [
    *("--dtype", "bfloat16", "--mem-fraction-static", "0.85", "--cuda-graph-max-bs-decode", "32"),
    *("--grammar-backend", "none", "--skip-server-warmup"),
]
# On a fresh machine FlashInfer and Triton compile their kernels first.
START_SECONDS = 420 if ON_GPU else 180
REQUEST_SECONDS = 300
LEAKS = re.compile(r"leak detected|double free|use-after-free", re.IGNORECASE)

# Below the ports that the system gives to clients, of which the soak has thousands; and far apart, as a
# server takes a second port up to 1,000 above its own.
PORTS = itertools.count(20_000, 1_500)

# Set when the program is to end: no server starts any more, and the running ones are killed.
stopping = threading.Event()
running: list["Server"] = []


def stop_all() -> None:
    stopping.set()
    for server in list(running):
        server.kill()


class Server:
    """Context manager around a server; threads of this program may use it at the same time."""

    def __init__(self, name: str, flags: list[str], logs: Path, environment: dict[str, str]) -> None:
        port = next_port()
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self.log = logs / f"{name}.log"
        self._port = port
        arguments = ["--model-path", str(MODEL_PATH), *(GPU_FLAGS if ON_GPU else FLAGS), *flags]
        self._launch = Launch(name, arguments, self.log, ON_GPU, START_SECONDS, environment)

    def __enter__(self) -> "Server":
        self._process = start(self._launch, self._port)
        running.append(self)
        started = time.monotonic()
        try:
            wait_until_up(self._launch, self._process, self.url, stopping.is_set)
            # Long enough to be pruned, so that every kernel is compiled before anything is measured.
            self.generate(Task(1).batch(1, 400)[0].prompt_ids(), 4)
            self.flush()
        except BaseException as error:
            self.kill()
            raise self._failure(error) from error
        self.start_seconds = time.monotonic() - started
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        failure = None if error is None else self._failure(error)
        self.kill()
        if failure is not None:
            raise failure from error

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _failure(self, error: BaseException) -> ServerError:
        if isinstance(error, ServerError):
            return error
        code = self._process.poll()
        what = f"{type(error).__name__}: {error}"
        fate = f"failed: {what}" if code is None else f"died (exit code {code}) before {what}"
        return ServerError(f"the server {self.name} {fate}", self.log)

    def post(self, path: str, body: dict[str, Any]) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=REQUEST_SECONDS)

    def generate(self, ids: list[int], tokens: int, laprox: Any = None, **body: Any) -> Any:
        """Greedy generation; the reply of ``/generate``, a list of them with ``n`` above 1."""
        response = self.post("/generate", generation(ids, tokens, laprox, **body))
        check(response)
        return response.json()

    def stream(self, ids: list[int], tokens: int, laprox: Any = None, **body: Any) -> Iterator[Any]:
        """Events of a streaming generation; each repeats all tokens so far."""
        request = generation(ids, tokens, laprox, stream=True, **body)
        url = f"{self.url}/generate"
        with requests.post(url, json=request, stream=True, timeout=REQUEST_SECONDS) as response:
            check(response)
            for line in response.iter_lines():
                if line.startswith(b"data: {"):
                    yield json.loads(line[6:])

    def generate_all(self, prompts: list[list[int]], tokens: int, at_once: int, tick: Any) -> list[Any]:
        def ask(prompt: list[int]) -> Any:
            reply = self.generate(prompt, tokens)
            tick()
            return reply

        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(ask, prompts))

    def abort(self, rid: str) -> None:
        # Where the server has died, the aborted request itself says so.
        with suppress(requests.RequestException):
            self.post("/abort_request", {"rid": rid})

    def info(self) -> dict[str, Any]:
        info: dict[str, Any] = requests.get(f"{self.url}/server_info", timeout=60).json()
        return info

    def laprox(self) -> dict[str, Any]:
        """Totals of LaProx; ``max_total_num_tokens`` of the server is added as ``slots``."""
        info = self.info()
        totals: dict[str, Any] = info["internal_states"][0]["laprox"]
        return totals | {"slots": info["max_total_num_tokens"]}

    def flush(self) -> None:
        """Empties the cache; the server must be idle, which it becomes a moment after its last reply."""
        for _ in range(100):
            if self.post("/flush_cache", {}).ok:
                return
            time.sleep(0.1)
        raise RuntimeError("it does not become idle, so its cache cannot be flushed")

    def leaks_in_log(self) -> int:
        return len(LEAKS.findall(self.log.read_text(errors="replace")))


def next_port() -> int:
    for port in PORTS:
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError


def check(response: requests.Response) -> None:
    if not response.ok:
        raise RuntimeError(f"HTTP {response.status_code}: {response.text[:300]}")


def generation(ids: list[int], tokens: int, laprox: Any, **body: Any) -> dict[str, Any]:
    sampling: dict[str, Any] = {"max_new_tokens": tokens, "temperature": 0}
    if laprox is not None:
        sampling["custom_params"] = {"laprox": laprox}
    return {"input_ids": ids, "sampling_params": sampling | body.pop("sampling", {}), **body}


def is_exact(reply: Any, sample: Sample) -> bool:
    answer = sample.answer_ids()
    exact: bool = reply["output_ids"][: len(answer)] == answer
    return exact
