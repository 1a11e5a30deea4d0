"""Servers of the 7M model for the checks, on the GPU where there is one."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import server as harness
from benchmarks.harness.server import CPU_FLAGS, GPU_FLAGS, GPU_START_SECONDS, START_SECONDS, Launch
from laprox_tools.needle import MODEL_PATH, Sample, Task

ON_GPU = torch.cuda.is_available()
# No more of the GPU than --max-total-tokens asks for.
GPU_MORE = ["--mem-fraction-static", "0.85", "--cuda-graph-max-bs-decode", "32"]
LEAKS = re.compile(r"leak detected|double free|use-after-free", re.IGNORECASE)


class Server(harness.Server):
    def __init__(self, name: str, flags: list[str], logs: Path, environment: dict[str, str]) -> None:
        device = [*GPU_FLAGS, *GPU_MORE] if ON_GPU else CPU_FLAGS
        seconds = GPU_START_SECONDS if ON_GPU else START_SECONDS
        arguments = ["--model-path", str(MODEL_PATH), *device, *flags]
        super().__init__(Launch(name, arguments, logs / f"{name}.log", ON_GPU, seconds, environment))
        self.name = name

    def warm_up(self) -> None:
        # Long enough to be pruned, so that every kernel is compiled before anything is measured.
        self.generate(Task(1).batch(1, 400)[0].prompt_ids(), 4)
        self.flush()

    def leaks_in_log(self) -> int:
        return len(LEAKS.findall(self.launch.log.read_text(errors="replace")))


@dataclass(frozen=True)
class Asked:
    """A server of a check: what it is started with, and what it is asked."""

    ask: Callable[[Server], None]
    flags: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def pruning(budget: str) -> list[str]:
    return ["--enable-laprox", "--laprox-budget", budget]


def pool(slots: int) -> list[str]:
    return ["--max-total-tokens", str(slots)]


def is_exact(reply: Any, sample: Sample) -> bool:
    answer = sample.answer_ids()
    exact: bool = reply["output_ids"][: len(answer)] == answer
    return exact
