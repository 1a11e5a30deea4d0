"""Servers for the checks: several at a time, on the GPU where there is one."""

import re
import threading
import time
from pathlib import Path
from typing import Any, Self

import torch

from benchmarks.harness import server as harness
from benchmarks.harness.server import CPU_FLAGS, GPU_FLAGS, GPU_START_SECONDS, START_SECONDS, Launch
from laprox_tools.needle import MODEL_PATH, Sample, Task

ON_GPU = torch.cuda.is_available()
# The servers share one GPU: each takes no more of it than --max-total-tokens asks for.
SHARED_FLAGS = ["--mem-fraction-static", "0.85", "--cuda-graph-max-bs-decode", "32"]
LEAKS = re.compile(r"leak detected|double free|use-after-free", re.IGNORECASE)

# Set when the program is to end: no server starts any more, and the running ones are killed.
stopping = threading.Event()
running: list["Server"] = []


def stop_all() -> None:
    stopping.set()
    for server in list(running):
        server.kill()


class Server(harness.Server):
    """A server of the 7M model that any thread may start, and the program may stop.

    Attributes:
        start_seconds: what its start took.
    """

    def __init__(self, name: str, flags: list[str], logs: Path, environment: dict[str, str]) -> None:
        device = [*GPU_FLAGS, *SHARED_FLAGS] if ON_GPU else CPU_FLAGS
        seconds = GPU_START_SECONDS if ON_GPU else START_SECONDS
        arguments = ["--model-path", str(MODEL_PATH), *device, *flags]
        super().__init__(Launch(name, arguments, logs / f"{name}.log", ON_GPU, seconds, environment))
        self.name = name

    def __enter__(self) -> Self:
        started = time.monotonic()
        self.start()
        running.append(self)
        try:
            self.wait(stopping.is_set)
            # Long enough to be pruned, so that every kernel is compiled before anything is measured.
            self.generate(Task(1).batch(1, 400)[0].prompt_ids(), 4)
            self.flush()
        except Exception as error:
            failure = self.failure(error)
            self.kill()
            raise failure from error
        self.start_seconds = time.monotonic() - started
        return self

    def leaks_in_log(self) -> int:
        return len(LEAKS.findall(self.launch.log.read_text(errors="replace")))


def is_exact(reply: Any, sample: Sample) -> bool:
    answer = sample.answer_ids()
    exact: bool = reply["output_ids"][: len(answer)] == answer
    return exact
