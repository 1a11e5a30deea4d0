"""The parts of the suite, by name."""

from collections.abc import Sequence

from benchmarks.quality import first, rounded, tasks, turns
from benchmarks.quality.cases import Case
from benchmarks.quality.longtexts import FORMS
from benchmarks.quality.methods import BASELINES, RIVALS
from benchmarks.quality.session import ON_GPU, SEED, Part, Session
from laprox_tools.needle import Task

NEWS = "longbench/multi_news"
# Of needles and turns.
LENGTHS = (1024, 2048)
# Of the 7M model; the longest takes a CPU too long.
SYNTHETIC = (2048, 4096, 8192, *([16384] if ON_GPU else []))
NAMES = f"needles, turns (or one length: needles/1024), rounded, prose, synthetic, {FORMS}"


class NoPart(ValueError):
    """A part that is not there; the message is one line."""


def parts(names: Sequence[str], smollm2: Session, needle7m: Session) -> list[Part]:
    """The parts that were asked for, or all that need no network.

    Args:
        smollm2: the model that reads prose.
        needle7m: the model of the synthetic task.

    Raises:
        NoPart: there is no part of that name.
        NoText: its texts are not there.
    """
    names = names or ["needles", "turns", "prose", *([NEWS] if smollm2.data else []), "rounded", "synthetic"]
    found = []
    for name in names:
        found += parts_of(name, smollm2, needle7m)
    return found


def parts_of(name: str, session: Session, needle7m: Session) -> list[Part]:
    lengths: tuple[int, ...] = LENGTHS
    task, _, one = name.partition("/")
    if task in ("needles", "turns") and one in map(str, LENGTHS):
        name, lengths = task, (int(one),)
    if name == "needles":
        return [first.part(session, name, n, True, needles(session, n, 8, 400)) for n in lengths]
    if name == "turns":
        return [turns.part(session, n, session.count(5, 200)) for n in lengths[: 1 if session.quick else 2]]
    if name == "rounded":
        length = lengths[0 if session.quick else 1]
        return [rounded.part(session, length, needles(session, length, 5, 200))]
    if name == "prose":
        cases = tasks.prose(session, 2048, session.count(2, 100), SEED)
        return [first.part(session, name, 2048, False, cases)]
    if name == "synthetic":
        return [synthetic(needle7m, length) for length in SYNTHETIC[: 1 if session.quick else None]]
    if "/" in name:
        cases = tasks.others(session, name, session.count(2, 100))
        return [first.part(session, name, tasks.LONGEST, False, cases)]
    raise NoPart(f"no part {name!r}; there are {NAMES}, and alone: ablation")


def needles(session: Session, length: int, quick: int, usual: int) -> list[Case]:
    return tasks.needles(session, length, session.count(quick, usual), SEED + length)


def synthetic(session: Session, length: int) -> Part:
    """Passcodes among filler sentences, which the 7M model was trained on."""
    samples = Task(SEED + length).batch(session.count(10, 200), length, fact_share=0.1)
    cases = [
        Case("passcode", sample.prompt_ids(), sample.answer_ids(), question=" ".join(sample.questions[0]))
        for sample in samples
    ]
    methods = {"laprox (paper)": BASELINES["laprox (paper)"], **RIVALS}
    return first.part(session, "passcodes", length, True, cases, methods)
