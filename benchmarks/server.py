"""A real SGLang server in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import requests

from laprox_sglang.config import ENVIRONMENT
from laprox_sglang.needle import MODEL_PATH

FLAGS = [
    *("--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"),
    *("--dtype", "float32", "--max-total-tokens", "65536", "--sleep-on-idle", "--grammar-backend", "none"),
    *("--skip-server-warmup", "--enable-cache-report"),
]
START_SECONDS = 180
LOG_LINES = 20
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ServerError(RuntimeError):
    """A server died, did not come up, or failed a request; the message shows the end of its log."""

    def __init__(self, what: str, log: Path) -> None:
        lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        super().__init__("\n".join([what, f"the end of {log}:", *(f"  {line}" for line in lines)]))


@contextmanager
def serve(name: str, flags: list[str], log: Path) -> Iterator[str]:
    """Runs a server while the context lasts, and yields its URL once it is up.

    A signal to this program kills the server first: no thread of ours is then left waiting for a reply.

    Raises:
        ServerError: it did not come up, or something went wrong while it ran.
    """
    port = free_port()
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(MODEL_PATH)]
    # LaProx is switched on by flags alone, and by nothing that the caller's shell exports. Where
    # there is a GPU, the server must not see it: the demo compares servers on a CPU.
    environment = {key: value for key, value in os.environ.items() if key != ENVIRONMENT}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port), *FLAGS, *flags],
            cwd=log.parent,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def kill() -> None:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def interrupt(signum: int, frame: FrameType | None) -> None:
        kill()
        raise KeyboardInterrupt

    handlers = {number: signal.signal(number, interrupt) for number in SIGNALS}
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(name, process, url, log)
        yield url
    except ServerError:
        raise
    except Exception as error:
        code = process.poll()
        fate = f"failed: {error}" if code is None else f"died (exit code {code})"
        raise ServerError(f"the server {name} {fate}", log) from error
    finally:
        kill()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def wait_until_up(name: str, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(f"the server {name} died at its start (exit code {process.returncode})", log)
        try:
            if requests.get(f"{url}/health", timeout=5).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.25)
    raise ServerError(f"the server {name} was not up after {START_SECONDS} seconds", log)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
