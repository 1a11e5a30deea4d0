"""One model of a run: its tokenizer, its weights in transformers, its server, and how much is asked of it."""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from rich.progress import Progress
from transformers import AutoTokenizer
from transformers.utils import logging

from benchmarks.harness.server import (
    CPU_FLAGS,
    GPU_FLAGS,
    GPU_START_SECONDS,
    RETURN_KEPT,
    Launch,
    Server,
    serve_all,
)
from benchmarks.quality.model import BadModel, Model
from benchmarks.quality.record import Measured
from laprox_sglang.options.server import Config
from laprox_sglang.options.values import shown

ON_GPU = torch.cuda.is_available()
# Several runs may share a GPU: a server takes no more of it than its pool asks for.
SHARED_FLAGS = ["--mem-fraction-static", "0.85", "--cuda-graph-max-bs-decode", "8"]
POOL = 65_536 if ON_GPU else 16_384
# Prompts and answers of the suite, and those of the ablation: what chose the defaults does not judge them.
SEED, ABLATION_SEED = 1, 2
# A request may not ask for more than its server's budget.
LARGEST_BUDGET = 0.5
# What is kept of a prompt depends on these options of a server; its others may change between two runs.
METHOD_OPTIONS = (
    *("budget", "scorer", "allocator", "floor", "pooling", "pooling_kernel"),
    *("window", "sink_tokens", "min_tokens", "keep_prefix"),
)


@dataclass(frozen=True)
class Part:
    """Documents of one task and length.

    Attributes:
        graded: whether an answer can be exact.
        prompts: documents there are; each is measured by its index.
    """

    name: str
    session: "Session"
    task: str
    length: int
    graded: bool
    prompts: int
    measure: Callable[[int], Measured]


@dataclass
class Session:
    """A context manager around what was started for a model.

    Attributes:
        path: folder of the model.
        name: of the model, as rows have it.
        prompts: documents of a part; None is what a part finds sensible.
        data: folder of texts that are not in the repository.
    """

    path: Path
    name: str
    quick: bool
    prompts: int | None
    data: Path | None
    progress: Progress
    _stack: ExitStack = field(default_factory=ExitStack)

    @cached_property
    def tokenizer(self) -> Any:
        """
        Raises:
            BadModel: there is none.
        """
        # Long texts are cut only after they were tokenized, which it warns of.
        logging.set_verbosity_error()
        try:
            return AutoTokenizer.from_pretrained(self.path)
        except Exception as error:
            raise BadModel(f"{self.path} has no tokenizer that can be read: {shown(error)}") from error

    @cached_property
    def model(self) -> Model:
        """As the server has it: float32 on a CPU, bfloat16 on a GPU.

        Raises:
            BadModel: as of ``Model``.
        """
        logging.disable_progress_bar()
        if ON_GPU:
            return Model(self.path, "cuda", torch.bfloat16)
        return Model(self.path)

    @cached_property
    def server(self) -> Server:
        """With LaProx and its defaults, but for the budget.

        Raises:
            BadModel: its weights are not read here.
            ServerError: it does not come up.
        """
        # Loaded before: what is wrong with it is known in seconds, and a server takes a minute.
        _ = self.model
        waiting = self.progress.add_task(f"{self.path.name}: server starts", total=None)
        log = Path(tempfile.mkdtemp(prefix="laprox-quality-")) / "server.log"
        flags = [*GPU_FLAGS, *SHARED_FLAGS] if ON_GPU else CPU_FLAGS
        laprox = ["--enable-laprox", "--laprox-budget", str(LARGEST_BUDGET), *RETURN_KEPT]
        arguments = [
            *("--model-path", str(self.path)),
            *("--max-total-tokens", str(POOL)),
            *(*flags, *laprox),
        ]
        launch = Launch(self.path.name, arguments, log, ON_GPU, GPU_START_SECONDS)
        (server,) = self._stack.enter_context(serve_all([launch]))
        self.progress.remove_task(waiting)
        return server

    @property
    def served(self) -> Config:
        """What the server was started with."""
        return Config(budget=LARGEST_BUDGET)

    @property
    def method(self) -> dict[str, Any]:
        """Those of its options that what is kept depends on, as JSON holds them."""
        return {name: getattr(self.served, name) for name in METHOD_OPTIONS}

    def count(self, quick: int, usual: int) -> int:
        """Documents of a part; ``usual`` is for a GPU, a CPU takes a fifth of it."""
        return self.prompts or (quick if self.quick else usual if ON_GPU else usual // 5)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
