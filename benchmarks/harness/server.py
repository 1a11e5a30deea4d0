"""Real SGLang servers, each in a process of its own: the one place that starts any."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import requests

from benchmarks.harness.client import Client
from laprox_sglang.options.server import ENVIRONMENT

# Kept positions are long: a server gives them only where it was told to.
RETURN_KEPT = ("--laprox-request-options", "budget,enabled,keep_prefix,return_kept")
CPU_FLAGS = [
    *("--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"),
    *("--dtype", "float32", "--sleep-on-idle", "--grammar-backend", "none", "--skip-server-warmup"),
]
GPU_FLAGS = ["--dtype", "bfloat16", "--grammar-backend", "none", "--skip-server-warmup"]
# Half a minute on an idle machine; 212 s were seen beside other work. One that dies is noticed at once.
START_SECONDS = 300
# On a fresh machine FlashInfer and Triton compile their kernels first.
GPU_START_SECONDS = 420
LOG_LINES = 20
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Below the ports that the system gives to clients, of which a soak has thousands.
PORTS = range(10_000, 32_000)


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
        log: where it writes; in a folder that exists.
        gpu: let it see the GPU, if there is one. The demo compares servers on a CPU.
        seconds: how long it may take to come up.
        environment: variables for it, in place of the caller's.
        folder: where it is started; by default that of the log.
    """

    name: str
    arguments: list[str]
    log: Path
    gpu: bool = False
    seconds: float = START_SECONDS
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None


class Server(Client):
    """A server, and its client; as a context manager it runs while the context lasts.

    An error within the context is raised as a ``ServerError``, which shows the log.
    """

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        super().__init__(f"http://127.0.0.1:{self._port}")

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Exit code; None while it runs, or before its start."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        # LaProx is switched on by flags alone, and by nothing that the caller's shell exports.
        environment = {key: value for key, value in os.environ.items() if key != ENVIRONMENT}
        environment |= self.launch.environment
        if not self.launch.gpu:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        with self.launch.log.open("w") as output:
            self._process = subprocess.Popen(
                [*command(*self.launch.arguments), "--port", str(self._port)],
                cwd=self.launch.folder or self.launch.log.parent,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, beside: Sequence["Server"] = ()) -> None:
        """Returns when it is up.

        Args:
            beside: servers that it is of no use without.

        Raises:
            ServerError: it, or one of those, died, or it took too long.
        """
        name, log, seconds = self.launch.name, self.launch.log, self.launch.seconds
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for server in (self, *beside):
                if server.code is not None:
                    what = f"the server {server.launch.name} died at its start (exit code {server.code})"
                    raise ServerError(what, server.launch.log)
            try:
                if requests.get(f"{self.url}/health", timeout=5).ok:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.25)
        raise ServerError(f"the server {name} was not up after {seconds:.0f} seconds", log)

    def kill(self) -> None:
        """Ends it and all processes that it started."""
        self.strike()
        if self._process is not None:
            self._process.wait()

    def strike(self) -> None:
        """Sends what ends it, and waits for nothing: a signal handler may do this at any moment."""
        if self._process is not None and self._process.poll() is None:
            # It may have been waited for to its end, and Python be about to note that.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def failure(self, error: Exception) -> ServerError:
        """What an error means: a death of the server explains it better than it does itself."""
        if isinstance(error, ServerError):
            return error
        what = f"{type(error).__name__}: {error}"
        fate = f"failed: {what}" if self.code is None else f"died (exit code {self.code}) before {what}"
        return ServerError(f"the server {self.launch.name} {fate}", self.launch.log)

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failure = self.failure(error) if isinstance(error, Exception) else None
        self.kill()
        if failure is not None and failure is not error:
            raise failure from error


@contextmanager
def serve_all(launches: Sequence[Launch]) -> Iterator[list[Server]]:
    """Starts servers side by side, yields them once all are up, and runs them while the context lasts.

    A signal to this program kills the servers first: no thread of ours is then left waiting for a reply.

    Raises:
        ServerError: one did not come up, or something went wrong while they ran.
    """
    servers = [Server(launch) for launch in launches]

    def interrupt(signum: int, frame: FrameType | None) -> None:
        # Not waited for here: the program may be waiting for the same process, and then holds its lock.
        for server in servers:
            server.strike()
        raise KeyboardInterrupt

    handlers = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.wait(beside=servers)
        yield servers
    except ServerError:
        raise
    except Exception as error:
        guilty = next((server for server in servers if server.code is not None), servers[0])
        raise guilty.failure(error) from error
    finally:
        for server in servers:
            server.kill()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def cores(ranks: int) -> dict[str, str]:
    """Environment for so many ranks or replicas on a CPU, each with a core as long as there are any.

    SGLang wants a memory node for each, unless it is told which cores it takes.
    """
    if ranks == 1:
        return {}
    return {
        "SGLANG_CPU_OMP_THREADS_BIND": "|".join(str(rank % (os.cpu_count() or 1)) for rank in range(ranks))
    }


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "sglang.launch_server", *arguments]


def free_port() -> int:
    # Drawn: two programs that begin at the same number would both find it free while their servers start.
    draw = random.SystemRandom()
    while True:
        port = draw.choice(PORTS)
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
