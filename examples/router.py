"""Two servers, one address: ``python examples/router.py URL URL``; needs ``sglang-router==0.3.2``.

SGLang's router sends a prompt where most of its beginning went before. So a conversation stays on its server,
whose cache has its history: its later turns hit as many tokens as they would on a lone server.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import openai
import requests

from laprox_tools.needle import DIGITS, Task, Turn


@contextmanager
def router(servers: list[str], seconds: float = 60) -> Iterator[str]:
    """Runs a router over running servers; gives its URL once it knows all of them."""
    port, metrics = free_ports(2)
    flags = ["--policy", "cache_aware", "--host", "127.0.0.1", "--port", str(port), "--log-level", "warn"]
    flags += ["--prometheus-port", str(metrics), "--worker-urls", *servers]
    process = subprocess.Popen([sys.executable, "-m", "sglang_router.launch_router", *flags])
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + seconds
    try:
        while healthy(url) < len(servers):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the router does not come up (exit code {process.poll()})")
            time.sleep(0.2)
        yield url
    finally:
        process.kill()
        process.wait()


def healthy(url: str) -> int:
    """How many servers the router knows."""
    try:
        return sum(worker["is_healthy"] for worker in requests.get(f"{url}/workers").json()["workers"])
    except requests.RequestException:
        return 0


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def talk(url: str, conversations: list[list[Turn]]) -> list[list[tuple[str, int]]]:
    """Holds all conversations side by side, turn by turn: answer and hit tokens of every turn."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")

    def ask(history: list[Any]) -> tuple[str, int]:
        reply = client.chat.completions.create(
            model="default", messages=history, max_tokens=DIGITS, temperature=0
        )
        history.append({"role": "assistant", "content": reply.choices[0].message.content})
        details = reply.usage.prompt_tokens_details
        return history[-1]["content"], details.cached_tokens if details else 0

    histories: list[list[Any]] = [[] for _ in conversations]
    rounds = []
    with ThreadPoolExecutor(len(conversations)) as pool:
        for turns in zip(*conversations, strict=True):
            for history, turn in zip(histories, turns, strict=True):
                history.append({"role": "user", "content": " ".join(turn.text)})
            rounds.append(list(pool.map(ask, histories)))
    return [list(said) for said in zip(*rounds, strict=True)]


if __name__ == "__main__":
    task = Task(seed=3)
    with router(sys.argv[1:]) as url:
        for number, said in enumerate(talk(url, [task.conversation([40, 12, 12]) for _ in range(4)])):
            print(f"conversation {number}: " + "; ".join(f"{answer!r}, hit {hit}" for answer, hit in said))
