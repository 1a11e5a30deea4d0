"""The first turn: a prompt that ends in its question, through the server, and by the other methods."""

from typing import Any

import torch

from benchmarks.quality.cases import Case, outcomes
from benchmarks.quality.methods import BASELINES, BUDGETS, SERVED, Chooser, Method, allocator
from benchmarks.quality.record import FIRST, Measured, Reading, all_kv
from benchmarks.quality.served import Reply, ask, compare
from benchmarks.quality.session import Part, Session
from benchmarks.quality.simulate import simulate

# Shown to a person: the first documents of a part, at this budget, with this many tokens around the fact.
TRANSCRIPTS, SHOWN_BUDGET, AROUND = 5, 0.05, 10
# Positions of a column in the picture of kept cells.
COLUMN = 32


def part(
    session: Session,
    task: str,
    length: int,
    graded: bool,
    cases: list[Case],
    methods: dict[str, Method] = BASELINES,
) -> Part:
    def measure(index: int) -> Measured:
        case = cases[index]
        replies = {
            budget: ask(session.server, case.prompt, len(case.answer), budget) for budget in (None, *BUDGETS)
        }
        measured = read(session, case, replies, graded, methods)
        if case.fact and index < TRANSCRIPTS:
            measured.shown = transcript(session, case, replies)
        return measured

    return Part(f"{task} {length}", session, task, length, graded, len(cases), measure)


def read(
    session: Session,
    case: Case,
    replies: dict[float | None, Reply],
    graded: bool,
    methods: dict[str, Method],
) -> Measured:
    """Replays what the server kept, and simulates the other methods on the same prefill."""
    prefix = session.model.prefill(case.prompt)
    measured = Measured(simulate(session.model, prefix, [], case.answer, FIRST, methods, BUDGETS))
    chooser = Chooser(session.model, prefix)
    pruned = {budget: reply.cells for budget, reply in replies.items() if reply.cells is not None}
    whole, *others = outcomes(session.model, prefix, [], case.answer, list(pruned.values()))
    replayed = dict(zip(pruned, others, strict=True))
    for budget in replies:
        # A prompt that was left whole reads all KV at that budget.
        outcome, reading = replayed.get(budget, whole), all_kv(FIRST)
        if budget is not None:
            reading = Reading(FIRST, SERVED, allocator(session.served), budget)
            if budget in pruned:
                measured.count(compare(pruned[budget], chooser, session.served, budget))
        if graded:
            exact = replies[budget].ids == case.answer
            measured.count({"answers": 1, "answers_equal": exact == outcome.exact})
            outcome = outcome._replace(exact=exact)
        measured.outcomes[reading] = outcome
    return measured


def transcript(session: Session, case: Case, replies: dict[float | None, Reply]) -> dict[str, Any]:
    """What a person may want to see of a document; numbers are shares of the cells that were kept."""
    decode = session.tokenizer.decode
    pruned = replies[SHOWN_BUDGET]
    assert pruned.cells is not None
    shares = pruned.cells.float().mean(dim=(0, 1))
    around = range(max(0, case.fact.start - AROUND), min(len(case.prompt), case.fact.stop + AROUND))
    return {
        "kind": case.kind,
        "question": case.question,
        "answer": decode(case.answer),
        "all KV": decode(replies[None].ids),
        "pruned": decode(pruned.ids),
        "budget": SHOWN_BUDGET,
        "tokens": [decode([case.prompt[place]]) for place in around],
        "kept": [round(shares[place].item(), 3) for place in around],
        "fact": [case.fact.start - around.start, case.fact.stop - around.start],
        "map": kept_map(pruned.cells),
        "map_fact": [case.fact.start / COLUMN, case.fact.stop / COLUMN],
    }


def kept_map(cells: torch.Tensor) -> list[list[float]]:
    """Share of the cells that are kept, by layer and by columns of 32 positions."""
    by_position = cells.float().mean(dim=1)
    columns = by_position.split(COLUMN, dim=1)
    return [
        [round(value, 2) for value in row] for row in torch.stack([c.mean(1) for c in columns], 1).tolist()
    ]
