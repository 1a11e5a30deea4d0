"""What a better default would be: other settings beside the paper's.

All settings read one prefill of each prompt. The documents are not those of the suite.
"""

from functools import partial

import msgspec

from benchmarks.quality import tasks
from benchmarks.quality.cases import Case
from benchmarks.quality.methods import BASELINES, BUDGETS, Method
from benchmarks.quality.record import FIRST, Measured
from benchmarks.quality.session import ABLATION_SEED, Part, Session
from benchmarks.quality.simulate import simulate
from laprox_sglang.config import Config

PAPER = BASELINES["laprox (paper)"]
BASE = "average 7 (paper)"
assert isinstance(PAPER, Config)
pooled = partial(msgspec.structs.replace, PAPER)
WIDE = pooled(pooling_kernel=15)
wide = partial(msgspec.structs.replace, WIDE)


def growing(factor: float) -> Method:
    """A floor of ``factor`` times the budget, up to all there is."""

    def config(budget: float) -> Config:
        floor = min(1.0, factor * budget)
        return wide(allocator="uniform", floor=None) if floor == 1 else wide(floor=round(floor, 4))

    return config


# One thing changes at a time: first the pooling, then from an average over 15 everything else.
SETTINGS: dict[str, Method] = {
    BASE: PAPER,
    "average 11": pooled(pooling_kernel=11),
    "average 15": WIDE,
    "average 21": pooled(pooling_kernel=21),
    "max 7": pooled(pooling="max", pooling_kernel=7),
    "max 15": pooled(pooling="max", pooling_kernel=15),
    "chunk 8": pooled(pooling="chunk", pooling_kernel=8),
    "chunk 16": pooled(pooling="chunk", pooling_kernel=16),
    "15, window 8": wide(window=8),
    "15, window 16": wide(window=16),
    "15, window 64": wide(window=64),
    "15, no sinks": wide(sink_tokens=0),
    "15, max over queries and heads": wide(scorer="laprox-max"),
    "15, joint form": wide(scorer="laprox-joint"),
    "15, by layer, floor 0.2": wide(allocator="layer", floor=0.2),
    "15, by layer, floor 0.5": wide(allocator="layer", floor=0.5),
    "15, floor 0.25": wide(floor=0.25),
    "15, floor 0.5": wide(floor=0.5),
    "15, floor 0.75": wide(floor=0.75),
    "15, same in every head": wide(allocator="uniform", floor=None),
    "15, floor 2.5 × budget": growing(2.5),
    "15, floor 5 × budget": growing(5),
    "snapkv 7": BASELINES["snapkv"],
    "ada-kv 7": BASELINES["ada-kv"],
    "snapkv 15": wide(scorer="snapkv", allocator="uniform", floor=None),
    "ada-kv 15": wide(scorer="snapkv", allocator="layer", floor=0.2),
}
# multi_news: the suite takes the documents before.
NEWS = 100


def parts(session: Session) -> list[Part]:
    found = []
    for length, count in ((2048, session.count(5, 200)), (1024, session.count(5, 150))):
        cases = tasks.needles(session, length, count, ABLATION_SEED + length)
        found.append(part(session, "needles", length, True, cases))
    cases = tasks.prose(session, 2048, session.count(2, 60), ABLATION_SEED)
    found.append(part(session, "prose", 2048, False, cases))
    if session.data is not None:
        cases = tasks.others(session, "longbench/multi_news", session.count(2, 60), skip=NEWS)
        found.append(part(session, "multi_news", tasks.LONGEST, False, cases))
    return found


def part(session: Session, task: str, length: int, graded: bool, cases: list[Case]) -> Part:
    def measure(index: int) -> Measured:
        case = cases[index]
        prefix = session.model.prefill(case.prompt)
        return Measured(simulate(session.model, prefix, [], case.answer, FIRST, SETTINGS, BUDGETS))

    return Part(f"ablation {task} {length}", session, task, length, graded, len(cases), measure)
