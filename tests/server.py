"""A real SGLang server in a process of its own, and what the tests ask of it."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from laprox_sglang.config import ENVIRONMENT
from laprox_sglang.needle import MODEL_PATH

ROOT = Path(__file__).resolve().parent.parent
FLAGS = (
    "--device cpu --attention-backend torch_native --sampling-backend pytorch --dtype float32 "
    "--sleep-on-idle --grammar-backend none --skip-server-warmup"
).split()
# SGLang's own leak checks, after every step and on every page, in every server of every test.
STRICT = {"SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1", "SGLANG_CHECK_KV_PAGE_INVARIANTS": "1"}
START_SECONDS = 180


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "sglang.launch_server", "--model-path", str(MODEL_PATH), *FLAGS, *flags]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Server:
    """Context manager around a server; its log is printed if it dies."""

    def __init__(self, *flags: str, tokens: int = 40_000, **environment: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        # Held as long as the server: closing it deletes it.
        self._log = tempfile.NamedTemporaryFile("w+", prefix="laprox-server-", suffix=".log")  # noqa: SIM115
        self._command = command("--port", str(port), "--max-total-tokens", str(tokens), *flags)
        self._environment = {k: v for k, v in os.environ.items() if k != ENVIRONMENT} | STRICT | environment

    def __enter__(self) -> "Server":
        # From the repository root, where a folder `kernels` lies in wait for SGLang's import of that name.
        self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=self._environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self._process.poll() is None, f"server died at its start:\n{self.log()}"
            try:
                if requests.get(self.url + "/health", timeout=5).ok:
                    return self
            except requests.RequestException:
                time.sleep(0.5)
        raise AssertionError(f"server not up after {START_SECONDS} s:\n{self.log()}")

    def __exit__(self, *failure: object) -> None:
        alive = self._process.poll() is None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if not alive or failure[0] is not None:
            print(self.log())
        self._log.close()

    def log(self) -> str:
        return Path(self._log.name).read_text()[-6000:]

    def post(self, path: str, **body: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=600)

    def generate(self, ids: list[int], tokens: int = 16, laprox: Any = None, **body: Any) -> dict[str, Any]:
        """Greedy generation; the reply of ``/generate``, which must be 200."""
        response = self.post("/generate", **generation(ids, tokens, laprox, **body))
        assert response.status_code == 200, response.text
        reply: dict[str, Any] = response.json()
        return reply

    def stream(self, ids: list[int], tokens: int = 16, laprox: Any = None, **body: Any) -> Iterator[dict]:
        """Events of a streaming generation."""
        request = generation(ids, tokens, laprox, stream=True, **body)
        with requests.post(self.url + "/generate", json=request, stream=True, timeout=600) as response:
            for line in response.iter_lines():
                if line.startswith(b"data: {"):
                    yield json.loads(line[6:])

    def generate_all(self, requests_: list[dict[str, Any]], at_once: int) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(lambda request: self.generate(**request), requests_))

    def laprox(self) -> dict[str, Any]:
        """Totals of the server."""
        info = requests.get(self.url + "/server_info", timeout=60).json()
        totals: dict[str, Any] = info["internal_states"][0]["laprox"]
        return totals

    def flush(self) -> None:
        """Empties the cache; the server must be idle, which it becomes a moment after its last reply."""
        for _ in range(50):
            if requests.post(self.url + "/flush_cache", timeout=60).ok:
                return
            time.sleep(0.1)
        raise AssertionError("the server does not become idle")


def generation(ids: list[int], tokens: int, laprox: Any, **body: Any) -> dict[str, Any]:
    sampling: dict[str, Any] = {"max_new_tokens": tokens, "temperature": 0}
    if laprox is not None:
        sampling["custom_params"] = {"laprox": laprox}
    return {"input_ids": ids, "sampling_params": sampling | body.pop("sampling", {}), **body}


def facts(reply: dict[str, Any]) -> dict[str, Any]:
    last: dict[str, Any] = reply["meta_info"]["laprox"][-1]
    return last


def chosen_logprobs(reply: dict[str, Any]) -> list[float]:
    return [entry[0] for entry in reply["meta_info"]["output_token_logprobs"]]
