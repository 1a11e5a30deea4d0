"""Answers of a server with two budgets, with room and under pressure, beside those of either budget alone.

A group is asked of two servers: one prompt after the other, and all at once of a pool in which no more has
room than one prompt and what the views of the others are promised. Budgets are numbers of slots: a fraction
of prompts that SmolLM2 reads would be 64 slots, which lose nothing.
"""

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from benchmarks.harness.client import facts
from benchmarks.harness.server import Server
from benchmarks.quality.record.intervals import difference_of_shares
from benchmarks.quality.subject import Subject
from benchmarks.quality.tasks.needles import TASK
from benchmarks.quality.tasks.task import Case, Wanted

# 3 and 30 % of a prompt's tokens.
LENGTH, LEAST, MOST = 1000, 30, 300
AT_ONCE = 10
# Of all the guarantees, a prompt that is computed, and answers, of which SGLang expects longer ones.
POOL = AT_ONCE * LEAST + LENGTH + 200

ALL_KV, FIXED_MOST, FIXED_LEAST = "all KV", "30 %", "3 %"
ROOM, PRESSED = "3 to 30 %, with room", "3 to 30 %, under pressure"
# Slots of the view when its answer has ended, how often it shrank, whether the answer is exact.
Row = tuple[int, int, bool]
# Of each prompt, by what is kept.
Group = dict[str, list[Row]]


def groups(tokenizer: Any, count: int) -> list[list[Case]]:
    cases = TASK.cases(Wanted(tokenizer, LENGTH, count * AT_ONCE))
    return [cases[i : i + AT_ONCE] for i in range(0, len(cases), AT_ONCE)]


class Servers:
    """Of one budget, that gives what it is asked for; and of two, with a pool that is soon full."""

    def __init__(self, subject: Subject) -> None:
        self._fixed = subject.server
        budgets = ("--laprox-budget", str(LEAST), "--laprox-budget-max", str(MOST))
        self._elastic = subject.serve(*budgets, "--max-total-tokens", str(POOL))

    def measure(self, cases: Sequence[Case]) -> Group:
        found = {
            ALL_KV: ask(self._fixed, cases, 1, {"enabled": False}),
            # These find the prompts in the prefix cache.
            FIXED_MOST: ask(self._fixed, cases, 1, {"budget": MOST}),
            FIXED_LEAST: ask(self._fixed, cases, 1, {"budget": LEAST}),
            ROOM: ask(self._elastic, cases, 1, {}),
        }
        assert {(slots, shrinks) for slots, shrinks, _ in found[ROOM]} == {(MOST, 0)}, "there was no room"
        self._elastic.flush()
        return found | {PRESSED: ask(self._elastic, cases, len(cases), {})}


def ask(server: Server, cases: Sequence[Case], at_once: int, options: dict[str, Any]) -> list[Row]:
    asked = [
        {
            **{"ids": case.prompt, "tokens": len(case.answer), "laprox": options},
            "sampling": {"ignore_eos": True},
        }
        for case in cases
    ]
    replies = server.generate_all(asked, at_once)
    told = map(facts, replies)
    return [
        (said["slots_after"], said["shrinks"], reply["output_ids"] == case.answer)
        for said, reply, case in zip(told, replies, cases, strict=True)
    ]


HEAD = ("kept", "slots", "views that shrank", "exact", "less all KV", "less 30 %", "less 3 %")


def rows(found: Sequence[Group]) -> Iterator[tuple[str, ...]]:
    """Exact answers in per cent, and paired differences in points."""
    right = {name: [exact for group in found for _, _, exact in group[name]] for name in found[0]}
    for name, exact in right.items():
        slots, shrinks, _ = zip(*(row for group in found for row in group[name]), strict=True)
        yield (
            *(name, f"{fmean(slots):.0f}", f"{sum(map(bool, shrinks))} of {len(shrinks)}"),
            f"{100 * fmean(exact):.1f}",
            *(
                "" if name == other else less(exact, right[other])
                for other in (ALL_KV, FIXED_MOST, FIXED_LEAST)
            ),
        )


def less(ours: Sequence[bool], theirs: Sequence[bool]) -> str:
    of = difference_of_shares(ours, theirs)
    return f"{100 * of.mean:+.1f} ({100 * of.low:+.1f} … {100 * of.high:+.1f})"
