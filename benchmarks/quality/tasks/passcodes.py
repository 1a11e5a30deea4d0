"""Passcodes among filler sentences, which the 7M model was trained on."""

from benchmarks.quality.tasks.task import Case, Task, Wanted
from laprox_tools import needle

# Of ten sentences so many are facts like the one that is asked for.
FACTS, FACTS_WHEN_TUNING = 0.1, 0.3


def cases(wanted: Wanted) -> list[Case]:
    share = FACTS_WHEN_TUNING if wanted.tuning else FACTS
    samples = needle.Task(wanted.seed + wanted.length).batch(wanted.count, wanted.length, fact_share=share)
    return [
        Case(sample.prompt_ids(), sample.answer_ids(), "passcode", " ".join(sample.questions[0]))
        for sample in samples
    ]


TASK = Task(cases, lengths=(2048, 4096, 8192, 16384), quick=10, needle7m=True)
