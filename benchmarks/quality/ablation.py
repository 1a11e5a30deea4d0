"""What a better default would be: other settings beside the paper's.

All settings read one prefill of each prompt. The documents are not those of the suite.
"""

from collections.abc import Sequence
from functools import partial

import msgspec

from benchmarks.quality import tasks
from benchmarks.quality.cases import Case
from benchmarks.quality.methods import BASELINES, BUDGETS, Method
from benchmarks.quality.needles import Needles
from benchmarks.quality.plan import NoPart
from benchmarks.quality.record import FIRST, Measured
from benchmarks.quality.session import ABLATION_SEED, Part, Session
from benchmarks.quality.simulate import simulate
from benchmarks.quality.turns import APART
from laprox_sglang.options.server import Config
from laprox_sglang.options.values import AUTO
from laprox_tools.needle import Task

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
# Of a summary, which draws on all of a text, one wants to know what the cells should compete over.
SHARING: dict[str, Method] = {
    name: method
    for name, method in SETTINGS.items()
    if name in (BASE, "average 15", "15, same in every head")
    or "floor" in name
    or name.startswith(("snapkv", "ada-kv"))
}


# A window's tokens are kept in any case: where the budget is small, a long one leaves nothing for the rest.
def with_windows(*windows: int | str) -> dict[str, Method]:
    return {f"window {window}": wide(allocator="layer", floor=0.2, window=window) for window in windows}


WINDOWS = with_windows(8, 16, 24, 32, 48)
# The default's is of two lengths: it may be small where the view is.
SMALL = with_windows(8, 16, 24, AUTO)
# Neighbours that are further away may weigh less. All else as served.
POOLINGS: dict[str, Method] = {
    **{f"average {width}": Config(pooling="average", pooling_kernel=width) for width in (7, 15)},
    **{f"parabola {width}": Config(pooling="parabola", pooling_kernel=width) for width in (15, 17, 19)},
    **{f"{name} 7": BASELINES[name] for name in ("snapkv", "ada-kv")},
}
# multi_news: the suite takes the documents before.
NEWS = 100
PASSCODES = "passcodes"


def parts(names: Sequence[str], session: Session, needle7m: Session) -> list[Part]:
    """The tasks that were asked for, or all whose texts are there.

    Args:
        needle7m: the model of the passcodes; all else is asked of ``session``'s.

    Raises:
        NoPart: there is no task of that name, or its texts are not there.
    """
    if wrong := set(names).difference(TASKS):
        raise NoPart(f"the ablation has no task {min(wrong)!r}; there are {', '.join(TASKS)}")
    if "multi_news" in names and session.data is None:
        raise NoPart("multi_news is not in the repository: give its folder with --data")
    found = []
    for name in names or [name for name in TASKS if name != "multi_news" or session.data]:
        found += TASKS[name](needle7m if name == PASSCODES else session)
    return found


def needles(session: Session) -> list[Part]:
    return [
        part(session, "needles", length, True, tasks.needles(session, length, count, ABLATION_SEED + length))
        for length, count in ((2048, session.count(5, 200)), (1024, session.count(5, 150)))
    ]


def prose(session: Session) -> list[Part]:
    cases = tasks.prose(session, 2048, session.count(2, 60), ABLATION_SEED)
    return [part(session, "prose", 2048, False, cases)]


def multi_news(session: Session) -> list[Part]:
    cases = tasks.others(session, "longbench/multi_news", session.count(2, 60), skip=NEWS)
    return [part(session, "multi_news", tasks.LONGEST, False, cases, SHARING)]


def later_cases(session: Session, length: int) -> list[Case]:
    """Questions of a later turn, over exact history: first, answer, second."""
    made, count = Needles(session.tokenizer, ABLATION_SEED + length), session.count(5, 150)
    cases = []
    for before, last in zip(tasks.kinds(count, APART), tasks.kinds(count), strict=True):
        document = made.document(length)
        earlier, case = made.case(document, before), made.case(document, last)
        prompt = earlier.prompt + earlier.answer + made.bridge(document, before, last)
        cases.append(Case(case.kind, prompt, case.answer))
    return cases


def windows(session: Session) -> list[Part]:
    """How many of the last queries score, on texts of every kind; without --data not on multi_news."""
    shorter = tasks.needles(session, 1024, session.count(5, 150), ABLATION_SEED + 1024)
    prose = tasks.prose(session, 2048, session.count(2, 60), ABLATION_SEED)
    found = [
        *(
            part(session, "later needles", length, True, later_cases(session, length), WINDOWS)
            for length in (1024, 2048)
        ),
        part(session, "needles by window", 1024, True, shorter, WINDOWS),
        part(session, "prose by window", 2048, False, prose, WINDOWS),
    ]
    if session.data is not None:
        news = tasks.others(session, "longbench/multi_news", session.count(2, 60), skip=NEWS)
        found.append(part(session, "multi_news by window", tasks.LONGEST, False, news, WINDOWS))
    return found


def poolings(session: Session) -> list[Part]:
    """How the scores of neighbours are weighed, on texts of every kind; without --data not on multi_news."""
    prose = tasks.prose(session, 2048, session.count(2, 60), ABLATION_SEED)
    found = [part(session, "prose by pooling", 2048, False, prose, POOLINGS)]
    for length in (1024, 2048):
        cases = tasks.needles(session, length, session.count(5, 200), ABLATION_SEED + length)
        found.append(part(session, "needles by pooling", length, True, cases, POOLINGS))
    if session.data is not None:
        news = tasks.others(session, "longbench/multi_news", session.count(2, 60), skip=NEWS)
        found.append(part(session, "multi_news by pooling", tasks.LONGEST, False, news, POOLINGS))
    return found


def passcodes(needle7m: Session) -> list[Part]:
    """The same of the 7M model, where three of ten sentences are facts like the one that is asked for."""
    samples = Task(ABLATION_SEED).batch(needle7m.count(5, 300), 1024, fact_share=0.3)
    cases = [Case("passcode", sample.prompt_ids(), sample.answer_ids()) for sample in samples]
    return [part(needle7m, "passcodes by pooling", 1024, True, cases, POOLINGS)]


def small(session: Session) -> list[Part]:
    """Prompts so short that a window may fill their views."""
    found = []
    prose = tasks.prose(session, 2048, session.count(2, 60), ABLATION_SEED)
    found.append(part(session, "small views, prose", 2048, False, prose, SMALL))
    for length in (512, 1024, 2048):
        first = tasks.needles(session, length, session.count(5, 150), ABLATION_SEED + length)
        found += [
            part(session, "small views", length, True, first, SMALL),
            part(session, "small views, later", length, True, later_cases(session, length), SMALL),
        ]
    return found


TASKS = {
    "needles": needles,
    "prose": prose,
    "multi_news": multi_news,
    "windows": windows,
    "small": small,
    "poolings": poolings,
    PASSCODES: passcodes,
}


def part(
    session: Session,
    task: str,
    length: int,
    graded: bool,
    cases: list[Case],
    settings: dict[str, Method] = SETTINGS,
) -> Part:
    def measure(index: int) -> Measured:
        case = cases[index]
        prefix = session.model.prefill(case.prompt)
        return Measured(simulate(session.model, prefix, [], case.answer, FIRST, settings, BUDGETS))

    return Part(f"ablation {task} {length}", session, task, length, graded, len(cases), measure)
