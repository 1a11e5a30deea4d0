"""All tasks by name. A new one is a file beside these with its ``TASK``, and a line here."""

from functools import partial

from benchmarks.quality.tasks import needles, passcodes, prose, published
from benchmarks.quality.tasks.task import Task

TASKS: dict[str, Task] = {"needles": needles.TASK, "prose": prose.TASK, "passcodes": passcodes.TASK}


def find(name: str) -> Task | None:
    """A task by its name in ``TASKS``, or one that others published: ``longbench/multi_news``."""
    if name.partition("/")[0] in published.READERS:
        return Task(partial(published.cases, name), (published.LONGEST,), graded=False, usual=100, quick=2)
    return TASKS.get(name)
