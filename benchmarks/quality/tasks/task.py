"""What a task is: questions with one right answer each, of any length, for any tokenizer."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Tokens of prompts that models of today are asked.
LONG = (4096, 8192, 16384)


class TaskError(ValueError):
    """A task that is not there, or cannot be asked of this model; the message is one line."""


@dataclass(frozen=True)
class Earlier:
    """A question that was asked before, in the same conversation.

    Attributes:
        prompt, answer: token ids.
        bridge: what stands between that answer and the answer to the later question.
    """

    prompt: list[int]
    answer: list[int]
    bridge: list[int]


@dataclass(frozen=True)
class Case:
    """
    Attributes:
        prompt, answer: token ids.
        kind, question: for a person.
        context: tokens of the prompt before the question; 0 where there is none.
        earlier: where the same question can also be asked as a later turn.
        phases: tokens of the prompt up to the end of its last tool result or document, and of its question.
    """

    prompt: list[int]
    answer: list[int]
    kind: str = ""
    question: str = ""
    context: int = 0
    earlier: Earlier | None = None
    phases: tuple[int, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """Which documents are wanted of a task.

    Attributes:
        tokenizer: of the model that is asked.
        length: tokens of a prompt; it has about as many, and not more.
        tuning: other documents, to choose settings by: what chose the defaults does not judge them.
        data: folder of texts that are not in the repository.
    """

    tokenizer: Any
    length: int
    count: int
    tuning: bool = False
    data: Path | None = None

    @property
    def seed(self) -> int:
        return 2 if self.tuning else 1


@dataclass(frozen=True)
class Task:
    """
    Attributes:
        cases: its questions, one to a document; the same ones for the same wish.
        lengths: that it is measured at where none is asked for.
        graded: whether an answer can be exact; else the distribution of the next tokens is compared.
        usual: documents on a GPU; a CPU takes a fifth of them.
        quick: documents with --quick.
        needle7m: it is asked of the 7M model, which knows no other one.
    """

    cases: Callable[[Wanted], list[Case]]
    lengths: tuple[int, ...]
    graded: bool = True
    usual: int = 200
    quick: int = 5
    needle7m: bool = False
