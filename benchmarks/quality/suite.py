"""The parts of a run by name, ``[READING:]TASK[/LENGTH]``, and how they are measured."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.progress import Progress

from benchmarks.quality.methods import SETTINGS
from benchmarks.quality.readings import Read, first_turn, in_fp8, later_turn, rounded, simulated
from benchmarks.quality.record.documents import EQUAL_BYTES, FP8_TOO
from benchmarks.quality.record.results_file import Results
from benchmarks.quality.subject import ON_GPU, Subject
from benchmarks.quality.tasks import TASKS, find
from benchmarks.quality.tasks.published import FORMS
from benchmarks.quality.tasks.task import Case, Task, TaskError, Wanted

TURNS, ROUNDED, FP8 = "turns", "rounded", "fp8"
READINGS: dict[str, Read] = {"": first_turn, TURNS: later_turn, ROUNDED: rounded, FP8: in_fp8}
# Those in which KV is not what it is in the others, behind the names of their tasks.
OTHER_KV = {ROUNDED: EQUAL_BYTES, FP8: FP8_TOO}
# Where none are asked for.
SHORT = ("needles/1024", "needles/2048", "turns:needles/1024", "turns:needles/2048", "prose")
ALL = (*SHORT, "rounded:needles/2048", "passcodes")
QUICK = (*SHORT[:3], "prose", "rounded:needles/1024", "passcodes/2048")
TUNING = (*SHORT, "passcodes/1024")
# Where there is --data.
NEWS = "longbench/multi_news"
# Tokens; longer prompts take a CPU too long.
LONGEST_ON_CPU = 8192


@dataclass(frozen=True)
class Size:
    """How much is measured, and of what texts.

    Attributes:
        prompts: documents of a part; None is what its task finds sensible.
        settings: a set of ``methods.SETTINGS``, which is then simulated on documents for choosing.
        data: folder of texts that are not in the repository.
    """

    quick: bool = False
    prompts: int | None = None
    settings: str | None = None
    data: Path | None = None

    def count(self, task: Task) -> int:
        """Documents of a part; a CPU takes a fifth of them."""
        return self.prompts or (task.quick if self.quick else task.usual if ON_GPU else task.usual // 5)


@dataclass(frozen=True)
class Part:
    """Documents of one task and length, read in one way.

    Attributes:
        task: as rows have it.
    """

    name: str
    subject: Subject
    task: str
    length: int
    graded: bool
    cases: list[Case]
    read: Read


def parts(names: Sequence[str], size: Size, subject: Subject, needle7m: Subject) -> list[Part]:
    """The parts that were asked for, or all that need no network.

    Args:
        needle7m: the model that the tasks which know no other one are asked of.

    Raises:
        TaskError: there is no part of that name, or its texts are not there.
    """
    usual = TUNING if size.settings else QUICK if size.quick else ALL
    names = names or [*usual, *([NEWS] if size.data is not None and not size.quick else [])]
    return [part for name in names for part in parts_of(name, size, subject, needle7m)]


def parts_of(name: str, size: Size, subject: Subject, needle7m: Subject) -> list[Part]:
    reading, _, rest = name.rpartition(":")
    length = rest.rpartition("/")[2]
    rest = rest.removesuffix(f"/{length}") if length.isdecimal() else rest
    task = find(rest)
    if task is None or reading not in READINGS:
        raise TaskError(
            f"no part {name!r}; there are {', '.join(TASKS)}, {FORMS}; with a length behind them "
            f"(needles/1024), and read otherwise: {TURNS}:needles, {ROUNDED}:needles, {FP8}:needles"
        )
    if reading in OTHER_KV and size.settings:
        raise TaskError(f"{name} and --settings do not go together: settings are of what is kept")
    read, shown = READINGS[reading], rest + OTHER_KV.get(reading, "")
    if size.settings:
        later = reading == TURNS
        read = partial(simulated, SETTINGS[size.settings], later)
        shown = f"{'later ' * later}{rest} by {size.settings}"
    asked = needle7m if task.needle7m else subject
    longest = asked.longest if ON_GPU else min(asked.longest, LONGEST_ON_CPU)
    lengths = [int(length)] if length.isdecimal() else [n for n in task.lengths if n <= longest]
    if not lengths or max(lengths) > asked.longest:
        raise TaskError(f"{name} is longer than the {asked.longest} tokens that {asked.name} reads")
    found = []
    for tokens in lengths:
        wanted = Wanted(asked.tokenizer, tokens, size.count(task), bool(size.settings), size.data)
        cases = task.cases(wanted)
        if reading == TURNS and any(case.earlier is None for case in cases):
            raise TaskError(f"{name}: {rest} has no question that can come before another")
        heading = f"{shown if size.settings else f'{reading}:{rest}'.removeprefix(':')} {tokens}"
        found.append(Part(heading, asked, shown, tokens, task.graded, cases, read))
    return found


def measure(part: Part, size: Size, results: Results, progress: Progress, deadline: float) -> None:
    """Measures the documents of a part that the results do not hold yet, until the deadline."""
    served = {} if size.settings else part.subject.method
    known = results.part(part.name, part.subject.name, served)
    bar = progress.add_task(part.name, total=len(part.cases), completed=known["prompts"])
    for case in part.cases[known["prompts"] :]:
        if time.monotonic() > deadline:
            return
        started = time.monotonic()
        measured = part.read(part.subject, case, part.graded)
        known["seconds"] = round(known.get("seconds", 0) + time.monotonic() - started, 1)
        results.add(known, part.task, part.length, part.graded, measured)
        progress.advance(bar)
