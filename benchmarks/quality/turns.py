"""Questions that come later: on the server over exact history, and as others have it over what is left.

A document is first asked for one fact and then for another. On the server the second prompt is history,
answer and question, over the exact tree, with a view of its own. Simulated beside it: the second question
over the KV that was pruned for the first; and a document that was pruned before any question was known.
"""

from benchmarks.quality import tasks
from benchmarks.quality.cases import outcomes
from benchmarks.quality.methods import BUDGETS, RIVALS, SERVED, Chooser, Method, allocator
from benchmarks.quality.model import Prefix
from benchmarks.quality.needles import Document, Needles
from benchmarks.quality.record import LATER, OVER_PRUNED, UNKNOWN, Measured, Reading, all_kv
from benchmarks.quality.served import ask, compare
from benchmarks.quality.session import SEED, Part, Session
from benchmarks.quality.simulate import simulate

# The question that came before is of another kind.
APART = 2


def part(session: Session, length: int, count: int) -> Part:
    """The documents and last questions of the first turn's part of this length."""
    made = Needles(session.tokenizer, SEED + length)
    documents = [made.document(length) for _ in range(count)]
    last, before = tasks.kinds(count), tasks.kinds(count, APART)

    def measure(index: int) -> Measured:
        return read(session, made, documents[index], before[index], last[index])

    return Part(f"turns {length}", session, "needles", length, True, count, measure)


def read(session: Session, made: Needles, document: Document, first: str, second: str) -> Measured:
    model = session.model
    methods: dict[str, Method] = {SERVED: session.served, **RIVALS}
    earlier, later = made.case(document, first), made.case(document, second)
    bridge = made.bridge(document, first, second)

    context = model.prefill(later.prompt[: later.context])
    question = later.prompt[later.context :]
    found = simulate(model, context, question, later.answer, UNKNOWN, methods, BUDGETS)

    asked = model.prefill(earlier.prompt[earlier.context :], context)
    between = earlier.answer + bridge
    found |= simulate(model, asked, between, later.answer, OVER_PRUNED, methods, BUDGETS)

    measured = Measured(found)
    histories: dict[tuple[int, ...], Prefix] = {}
    for budget in (None, *BUDGETS):
        told = ask(session.server, earlier.prompt, len(earlier.answer), budget).ids
        # What the model itself said, right or wrong.
        prompt = earlier.prompt + told + bridge
        reply = ask(session.server, prompt, len(later.answer), budget)
        if tuple(told) not in histories:
            histories[tuple(told)] = model.prefill(told + bridge, asked)
        history = histories[tuple(told)]
        kept = [reply.cells] if reply.cells is not None else []
        outcome = outcomes(model, history, [], later.answer, kept)[-1]
        exact = reply.ids == later.answer
        measured.count({"answers": 1, "answers_equal": exact == outcome.exact})
        reading = all_kv(LATER)
        if budget is not None:
            # A prompt that was left whole reads all KV at that budget.
            reading = Reading(LATER, SERVED, allocator(session.served), budget)
            if reply.cells is not None:
                measured.count(compare(reply.cells, Chooser(model, history), session.served, budget))
        measured.outcomes[reading] = outcome._replace(exact=exact)
    return measured
