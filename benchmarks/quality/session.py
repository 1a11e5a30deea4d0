"""One run of the suite: the model, its tokenizer, its server, and how much is asked."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from transformers import AutoTokenizer

from benchmarks.quality.model import Model
from benchmarks.quality.record import Measured

ON_GPU = torch.cuda.is_available()
# Prompts and answers of the suite, and those of the ablation: what chose the defaults does not judge them.
SEED, ABLATION_SEED = 1, 2


@dataclass(frozen=True)
class Part:
    """Documents of one task and length.

    Attributes:
        graded: whether an answer can be exact.
        prompts: documents there are; each is measured by its index.
    """

    name: str
    task: str
    length: int
    graded: bool
    prompts: int
    measure: Callable[[int], Measured]


@dataclass
class Session:
    """
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

    @cached_property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.path)

    @cached_property
    def model(self) -> Model:
        """As the server has it: float32 on a CPU, bfloat16 on a GPU."""
        if ON_GPU:
            return Model(self.path, "cuda", torch.bfloat16)
        return Model(self.path)

    def count(self, quick: int, usual: int) -> int:
        """Documents of a part; ``usual`` is for a GPU, a CPU takes a fifth of it."""
        return self.prompts or (quick if self.quick else usual if ON_GPU else usual // 5)
