"""All tasks by name. A new one is a file beside these with its ``TASK``, and a line here."""

from functools import partial

from benchmarks.quality.tasks import agents, code, needles, passcodes, prose, published, ruler
from benchmarks.quality.tasks.chat import cases
from benchmarks.quality.tasks.task import LONG, Task

RULER = (ruler.multikey, ruler.multivalue, ruler.multiquery, ruler.variables, ruler.words, ruler.questions)
TASKS: dict[str, Task] = {
    "needles": needles.TASK,
    **{draft.__name__: Task(partial(cases, draft), LONG) for draft in RULER},
    "code": code.TASK,
    "agents": agents.TASK,
    "prose": prose.TASK,
    "passcodes": passcodes.TASK,
}


def find(name: str) -> Task | None:
    """A task by its name in ``TASKS``, or one that others published: ``longbench/multi_news``."""
    if name.partition("/")[0] in published.READERS:
        return Task(partial(published.cases, name), (published.LONGEST,), graded=False, usual=100, quick=2)
    return TASKS.get(name)
