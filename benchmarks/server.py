"""Real SGLang servers, each in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Launch:
    """A server to start.

    Attributes:
        arguments: of ``sglang.launch_server``, without the port.
        gpu: let it see the GPU, if there is one. The demo compares servers on a CPU.
        seconds: how long it may take to come up.
        environment: variables for it; what the caller's shell exports wins.
    """

    name: str
    arguments: list[str]
    log: Path
    gpu: bool = False
    seconds: float = START_SECONDS
    environment: dict[str, str] = field(default_factory=dict)


@contextmanager
def serve(name: str, flags: list[str], log: Path) -> Iterator[str]:
    """Serves the 7M model on the CPU while the context lasts, and yields the URL.

    Raises:
        ServerError: it did not come up, or something went wrong while it ran.
    """
    with serve_all([Launch(name, ["--model-path", str(MODEL_PATH), *FLAGS, *flags], log)]) as (url,):
        yield url


@contextmanager
def serve_all(launches: Sequence[Launch]) -> Iterator[list[str]]:
    """Starts servers side by side, runs them while the context lasts, and yields their URLs once all are up.

    A signal to this program kills the servers first: no thread of ours is then left waiting for a reply.

    Raises:
        ServerError: one did not come up, or something went wrong while they ran.
    """
    processes: list[subprocess.Popen[bytes]] = []

    def kill() -> None:
        for process in processes:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def interrupt(signum: int, frame: FrameType | None) -> None:
        kill()
        raise KeyboardInterrupt

    handlers = {number: signal.signal(number, interrupt) for number in SIGNALS}
    urls = []
    try:
        for launch in launches:
            port = free_port()
            processes.append(start(launch, port))
            urls.append(f"http://127.0.0.1:{port}")
        for launch, process, url in zip(launches, processes, urls, strict=True):
            wait_until_up(launch, process, url)
        yield urls
    except ServerError:
        raise
    except Exception as error:
        codes = [process.poll() for process in processes]
        # A death explains the error better than the error does.
        guilty = next((number for number, code in enumerate(codes) if code is not None), 0)
        code = codes[guilty] if codes else None
        fate = f"failed: {error}" if code is None else f"died (exit code {code})"
        raise ServerError(f"the server {launches[guilty].name} {fate}", launches[guilty].log) from error
    finally:
        kill()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def start(launch: Launch, port: int) -> subprocess.Popen[bytes]:
    # LaProx is switched on by flags alone, and by nothing that the caller's shell exports.
    exported = {key: value for key, value in os.environ.items() if key != ENVIRONMENT}
    environment = launch.environment | exported
    if not launch.gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    with launch.log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "sglang.launch_server", *launch.arguments, "--port", str(port)],
            # Not the repository root: its folder `kernels` would be found before a package of that name.
            cwd=launch.log.parent,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_until_up(
    launch: Launch,
    process: subprocess.Popen[bytes],
    url: str,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """
    Raises:
        ServerError: it died, took too long, or ``stopped`` says that nobody waits for it any more.
    """
    deadline = time.monotonic() + launch.seconds
    while time.monotonic() < deadline and not stopped():
        if process.poll() is not None:
            raise ServerError(
                f"the server {launch.name} died at its start (exit code {process.returncode})", launch.log
            )
        try:
            if requests.get(f"{url}/health", timeout=5).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.25)
    when = "when the program was stopped" if stopped() else f"after {launch.seconds:.0f} seconds"
    raise ServerError(f"the server {launch.name} was not up {when}", launch.log)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
