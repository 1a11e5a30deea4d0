"""The model that is asked: its tokenizer, its weights in transformers, and its server."""

import tempfile
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from transformers import AutoConfig, AutoTokenizer
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
from benchmarks.quality.methods import METHOD_OPTIONS
from benchmarks.quality.methods.reader import BadModel, Model
from laprox_sglang.options.server import Config
from laprox_sglang.options.values import shown

ON_GPU = torch.cuda.is_available()
# Several runs may share a GPU: a server takes no more of it than its pool asks for.
SHARED_FLAGS = ["--mem-fraction-static", "0.85", "--cuda-graph-max-bs-decode", "8"]
# Above the longest prompt with its views at all budgets: none must be left whole for want of room.
POOL = 65_536 if ON_GPU else 32_768
# A request may not ask for more than its server's budget.
LARGEST_BUDGET = 0.5


class Subject(ExitStack):
    """A context manager around what was started for a model.

    Attributes:
        path: folder of the model, or its name on the hub.
        name: of the model, as rows have it.
    """

    def __init__(self, path: str, name: str, progress: Progress) -> None:
        super().__init__()
        self.path, self.name, self._progress = path, name, progress

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
    def longest(self) -> int:
        """Tokens that it reads.

        Raises:
            BadModel: it does not say.
        """
        try:
            longest: int = AutoConfig.from_pretrained(self.path).get_text_config().max_position_embeddings
        except Exception as error:
            raise BadModel(f"{self.path} has no configuration that can be read: {shown(error)}") from error
        return longest

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
        return self.serve()

    @cached_property
    def fp8_server(self) -> Server:
        """The same with KV in fp8. Raises as ``server`` does."""
        return self.serve("--kv-cache-dtype", "fp8_e4m3")

    def serve(self, *more: str) -> Server:
        """Another, with flags that come behind those of the others. Raises as ``server`` does."""
        # Loaded before: what is wrong with it is known in seconds, and a server takes a minute.
        _ = self.model
        waiting = self._progress.add_task(f"{self.name}: server starts", total=None)
        log = Path(tempfile.mkdtemp(prefix="laprox-quality-")) / "server.log"
        flags = [*GPU_FLAGS, *SHARED_FLAGS] if ON_GPU else CPU_FLAGS
        laprox = ["--enable-laprox", "--laprox-budget", str(LARGEST_BUDGET), *RETURN_KEPT]
        model = ["--model-path", self.path, "--max-total-tokens", str(POOL)]
        launch = Launch(self.name, [*model, *flags, *laprox, *more], log, ON_GPU, GPU_START_SECONDS)
        (server,) = self.enter_context(serve_all([launch]))
        self._progress.remove_task(waiting)
        return server

    @property
    def served(self) -> Config:
        """What the server was started with."""
        return Config(budget=LARGEST_BUDGET)

    @property
    def method(self) -> dict[str, Any]:
        """Those of its options that what is kept depends on, as JSON holds them."""
        return {name: getattr(self.served, name) for name in METHOD_OPTIONS}
