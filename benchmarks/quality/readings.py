"""How a case is asked: in the first turn, in a later one, over KV in fewer bits, or only simulated."""

from collections.abc import Callable, Mapping

import torch

from benchmarks.quality.methods import BASELINES, BUDGETS, RIVALS, SERVED, judge
from benchmarks.quality.methods.choice import Chooser, allocator
from benchmarks.quality.methods.judge import outcomes, simulate
from benchmarks.quality.methods.quantized import FOUR_BITS, FP8, four_bits, fp8
from benchmarks.quality.methods.reader import everything
from benchmarks.quality.methods.variants import Variant
from benchmarks.quality.record import transcript
from benchmarks.quality.record.documents import (
    FIRST,
    IN_FP8,
    LATER,
    OVER_PRUNED,
    UNKNOWN,
    Reading,
    all_kv,
)
from benchmarks.quality.record.results_file import Measured
from benchmarks.quality.served import Reply, ask, compare
from benchmarks.quality.subject import Subject
from benchmarks.quality.tasks.task import Case
from laprox_sglang.options.server import Config
from laprox_sglang.options.values import slots_of_share

# The last argument: whether an answer can be exact.
Read = Callable[[Subject, Case, bool], Measured]


def first_turn(subject: Subject, case: Case, graded: bool) -> Measured:
    """A prompt that ends in its question: through the server, and by the other methods."""
    model, count = subject.model, len(case.answer)
    replies = ask(subject.server, dict.fromkeys((None, *BUDGETS), case.prompt), count)
    chooser = Chooser(model, model.prefill(case.prompt))
    measured = Measured(simulate(model, chooser.prefix, [], case.answer, FIRST, BASELINES, BUDGETS))
    replay(measured, subject.served, chooser, case.answer, FIRST, replies, graded)
    if case.question:
        measured.shown = transcript.of(subject.tokenizer, case, replies)
    return measured


def later_turn(subject: Subject, case: Case, graded: bool) -> Measured:
    """A question behind another one: on the server over exact history, and as others have it.

    On the server the second prompt is history, answer and question, over the exact tree, with a view of its
    own. Simulated beside it: the second question over the KV that was pruned for the first; and a document
    that was pruned before any question was known.
    """
    model, server, earlier = subject.model, subject.server, case.earlier
    assert earlier is not None
    methods = {SERVED: subject.served, **RIVALS}
    context = model.prefill(case.prompt[: case.context])
    question = case.prompt[case.context :]
    found = simulate(model, context, question, case.answer, UNKNOWN, methods, BUDGETS)
    asked = model.prefill(earlier.prompt[case.context :], context)
    between = earlier.answer + earlier.bridge
    found |= simulate(model, asked, between, case.answer, OVER_PRUNED, methods, BUDGETS)

    measured = Measured(found)
    before = ask(server, dict.fromkeys((None, *BUDGETS), earlier.prompt), len(earlier.answer))
    # What the model itself said, right or wrong.
    said = {budget: reply.ids + earlier.bridge for budget, reply in before.items()}
    prompts = {budget: earlier.prompt + ids for budget, ids in said.items()}
    replies = ask(server, prompts, len(case.answer))
    for ids in {tuple(ids): ids for ids in said.values()}.values():
        alike = {budget: reply for budget, reply in replies.items() if said[budget] == ids}
        history = Chooser(model, model.prefill(ids, asked))
        replay(measured, subject.served, history, case.answer, LATER, alike, graded)
    return measured


def replay(
    measured: Measured,
    served: Config,
    chooser: Chooser,
    answer: list[int],
    turn: str,
    replies: Mapping[float | None, Reply],
    graded: bool,
    kv: str = "",
) -> None:
    """Reads what the server kept of a prompt, and compares it with what the reference keeps of it.

    Args:
        kv: what the server's KV is, behind the name of the method.
    """
    # A prompt that was left whole reads all KV at that budget.
    whole = everything(chooser.model, chooser.prefix)[0]
    kept = [whole if reply.cells is None else reply.cells for reply in replies.values()]
    found = outcomes(chooser.model, chooser.prefix, [], answer, kept)[1:]
    for (budget, reply), outcome in zip(replies.items(), found, strict=True):
        if reply.cells is not None and budget is not None:
            slots = slots_of_share(budget, len(chooser.prefix.ids))
            measured.count(compare(reply.cells, chooser, served, slots))
        if graded:
            exact = reply.ids == answer
            measured.count({"answers": 1, "answers_equal": exact == outcome.exact})
            outcome = outcome._replace(exact=exact)
        reading = all_kv(turn) if budget is None else Reading(turn, SERVED, allocator(served), budget)
        measured.outcomes[reading._replace(method=reading.method + kv)] = outcome


def in_fp8(subject: Subject, case: Case, graded: bool) -> Measured:
    """The same prompt through a server and through one with fp8 KV, whole and with views."""
    model, measured = subject.model, Measured({})
    for server, kv_dtype, kv in (
        (subject.server, None, ""),
        (subject.fp8_server, torch.float8_e4m3fn, IN_FP8),
    ):
        chooser = Chooser(model, model.prefill(case.prompt, kv_dtype=kv_dtype))
        replies = ask(server, dict.fromkeys((None, *BUDGETS), case.prompt), len(case.answer))
        replay(measured, subject.served, chooser, case.answer, FIRST, replies, graded, kv)
    return measured


def rounded(subject: Subject, case: Case, graded: bool) -> Measured:
    """The prompt's KV in fp8 and in 4 bits, beside pruning at the same bytes."""
    model = subject.model
    prefix = model.prefill(case.prompt)
    methods = {SERVED: subject.served, **RIVALS}
    found = simulate(model, prefix, [], case.answer, FIRST, methods, (FOUR_BITS, FP8))
    cells = everything(model, prefix)
    (whole,) = model.follow(prefix, case.answer[:-1], cells)
    for name, round_off, share in (("fp8 KV", fp8, FP8), ("4-bit KV", four_bits, FOUR_BITS)):
        (steps,) = model.follow(round_off(prefix), case.answer[:-1], cells)
        found[Reading(FIRST, name, "", share)] = judge.outcome(steps, whole, case.answer, 1, cells[0])
    return Measured(found)


def simulated(
    methods: Mapping[str, Config | Variant], later: bool, subject: Subject, case: Case, graded: bool
) -> Measured:
    """Other settings of the method on one prefill, without a server.

    Args:
        later: the question comes behind another one, over exact history.
    """
    prompt = case.prompt
    if later:
        assert case.earlier is not None
        prompt = case.earlier.prompt + case.earlier.answer + case.earlier.bridge
    prefix = subject.model.prefill(prompt, phases=() if later else case.phases)
    return Measured(simulate(subject.model, prefix, [], case.answer, FIRST, methods, BUDGETS))
