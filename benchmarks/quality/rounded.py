"""The prompt's KV in fp8 and in 4 bits, beside pruning at the same bytes."""

from benchmarks.quality.cases import Case, outcome
from benchmarks.quality.methods import RIVALS, SERVED, Method
from benchmarks.quality.model import everything
from benchmarks.quality.record import FIRST, Measured, Reading
from benchmarks.quality.rounding import FOUR_BITS, FP8, four_bits, fp8
from benchmarks.quality.session import Part, Session
from benchmarks.quality.simulate import simulate

# A task of its own: its documents are not counted among those of others.
TASK = "needles at equal bytes"


def part(session: Session, length: int, cases: list[Case]) -> Part:
    def measure(index: int) -> Measured:
        case, model = cases[index], session.model
        prefix = model.prefill(case.prompt)
        methods: dict[str, Method] = {SERVED: session.served, **RIVALS}
        found = simulate(model, prefix, [], case.answer, FIRST, methods, (FOUR_BITS, FP8))
        cells = everything(model, prefix)
        (whole,) = model.follow(prefix, case.answer[:-1], cells)
        for name, round_off, share in (("fp8 KV", fp8, FP8), ("4-bit KV", four_bits, FOUR_BITS)):
            (steps,) = model.follow(round_off(prefix), case.answer[:-1], cells)
            found[Reading(FIRST, name, "", share)] = outcome(steps, whole, case.answer, 1, cells[0])
        return Measured(found)

    return Part(f"rounded {length}", session, TASK, length, True, len(cases), measure)
