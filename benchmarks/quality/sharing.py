"""One budget over prompts of different length: which rule for giving slots to each keeps most answers right.

    python -m benchmarks.quality.sharing [--groups N] [--model MODEL] [--minutes M] [--json FILE]
    python -m benchmarks.quality.sharing --served  # two budgets on the real server: see pressed.py

A group is one prompt of each length, with a fact that is asked for ("needles"). Every rule gives the group
the same number of slots in all, but for those that say "more". Scores are those of a server; what is read is
simulated on one prefill. A run goes on where the last one stopped. A group takes a core a minute or two.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.harness.arguments import parser as parser_of
from benchmarks.harness.files import replacing
from benchmarks.harness.provenance import ROOT, chip, fault_of, made_by
from benchmarks.quality import pressed, smollm2
from benchmarks.quality.methods.choice import Chooser, plan_of
from benchmarks.quality.methods.judge import outcomes
from benchmarks.quality.pressed import less
from benchmarks.quality.subject import Subject
from benchmarks.quality.tasks.needles import TASK
from benchmarks.quality.tasks.task import Case, Wanted
from laprox_sglang.options.server import Config
from laprox_sglang.options.values import slots_of_share
from laprox_sglang.views.plan import Plan

LENGTHS = (300, 400, 600, 900, 1300, 1800)
BUDGETS = (0.03, 0.05)
# As a server's, but that no prompt is left whole for being short: its slots would be the others'.
CONFIG = Config(min_tokens=64)
SAME_SHARE, ALL_KV = "same share each", "all KV"
# Slots that any view needs beside what is protected, so that a rule has something to choose.
SPARE = 4


class Asked(NamedTuple):
    """A prompt of a group at one budget.

    Attributes:
        protected: slots whose cells are kept in any case.
        share: slots of its own budget.
        marginal: float32 ``[P - protected]``, of its windowed attention output the share that each further
            slot carries, over all layers and heads; it falls.
    """

    length: int
    protected: int
    share: int
    marginal: torch.Tensor

    @property
    def least(self) -> int:
        return self.protected + SPARE

    def retained(self, slots: int) -> float:
        """Share of the output that so many slots carry, of what is not protected."""
        return float(self.marginal[: slots - self.protected].sum())


Rule = Callable[[Sequence[Asked]], list[int]]
# Slots, whether the answer is exact, its mean log-probability.
Row = tuple[int, bool, float]
# By budget and rule: of a prompt of each length.
Group = dict[str, dict[str, list[Row]]]


def total(group: Sequence[Asked]) -> int:
    return sum(asked.share for asked in group)


def same_share(group: Sequence[Asked]) -> list[int]:
    return [asked.share for asked in group]


def same_slots(group: Sequence[Asked]) -> list[int]:
    return given_in_turn(group, lambda asked, slots: slots)


def by_sum(group: Sequence[Asked]) -> list[int]:
    """One ranking: the next slot goes where it carries most, so that the sum of what is lost is least."""
    return given_in_turn(group, lambda asked, slots: -float(asked.marginal[slots - asked.protected]))


def by_maximum(group: Sequence[Asked]) -> list[int]:
    """The next slot goes to the prompt that has lost most."""
    return given_in_turn(group, lambda asked, slots: asked.retained(slots))


def given_in_turn(group: Sequence[Asked], rank: Callable[[Asked, int], float]) -> list[int]:
    """Slots one by one to the prompt of the lowest rank, which depends on the slots that it has."""
    slots = [asked.least for asked in group]
    for _ in range(total(group) - sum(slots)):
        open_ = [i for i, asked in enumerate(group) if slots[i] < asked.length - 1]
        slots[min(open_, key=lambda i: rank(group[i], slots[i]))] += 1
    return slots


def with_floor(least: int, group: Sequence[Asked]) -> list[int]:
    """The same share each, and ``least`` slots at least: more slots in all."""
    return [min(asked.length - 1, max(asked.share, least)) for asked in group]


def floor_within(least: int, group: Sequence[Asked]) -> list[int]:
    """Shares in proportion to length above ``least`` slots each, the same number in all."""
    return given_in_turn(group, lambda asked, slots: slots / asked.length if slots >= least else slots - 1e6)


RULES: dict[str, Rule] = {
    SAME_SHARE: same_share,
    "same slots each": same_slots,
    "one ranking, by sum": by_sum,
    "one ranking, by maximum": by_maximum,
    "64 slots first, then by length": lambda group: floor_within(64, group),
    "same share, at least 64 (more)": lambda group: with_floor(64, group),
    "same share, at least 128 (more)": lambda group: with_floor(128, group),
}


def by_share_alone(budget: float, length: int) -> Plan:
    """Asks for a number: a server gives a fraction some slots at least, which is one of the rules here."""
    return plan_of(CONFIG, slots_of_share(budget, length), length)


class Prompt:
    """A prompt that is computed once."""

    def __init__(self, subject: Subject, case: Case) -> None:
        self._case = case
        self._chooser = Chooser(subject.model, subject.model.prefill(case.prompt))

    def at(self, budget: float) -> tuple[Asked, Plan]:
        plan = by_share_alone(budget, len(self._case.prompt))
        scores = self._chooser.scores(CONFIG, plan)
        layers, heads, _ = scores.shape
        shares = scores.masked_fill(scores == math.inf, 0).flatten(1).sort(dim=1, descending=True).values
        shares = shares / shares.sum(dim=1, keepdim=True)
        marginal = shares.view(layers, -1, heads).sum(-1).mean(0)
        return Asked(plan.length, plan.protected, max(plan.least, plan.protected + SPARE), marginal), plan

    def read(self, plan: Plan, slots: Sequence[int]) -> list[Row]:
        """With all KV, and with each number of slots."""
        kept = [self._chooser.choose(CONFIG, plan._replace(least=count)) for count in slots]
        found = outcomes(self._chooser.model, self._chooser.prefix, [], self._case.answer, kept)
        counts = (plan.length, *slots)
        return [(count, of.exact, round(of.logprob, 4)) for count, of in zip(counts, found, strict=True)]


def groups_of(tokenizer: Any, count: int) -> list[Sequence[Case]]:
    wanted = (Wanted(tokenizer, length, count, tuning=True) for length in LENGTHS)
    return list(zip(*map(TASK.cases, wanted), strict=True))


def measure(subject: Subject, cases: Sequence[Case]) -> Group:
    prompts, found = [Prompt(subject, case) for case in cases], {}
    for budget in BUDGETS:
        told = [prompt.at(budget) for prompt in prompts]
        group = [asked for asked, _ in told]
        slots = zip(*(rule(group) for rule in RULES.values()), strict=True)
        read = (
            prompt.read(plan, given) for prompt, (_, plan), given in zip(prompts, told, slots, strict=True)
        )
        found[f"{budget:.0%}"] = dict(zip((ALL_KV, *RULES), map(list, zip(*read, strict=True)), strict=True))
    return found


HEAD = ("budget", "rule", "slots", "exact", "less all KV", *map(str, LENGTHS), "log-prob")


def rows(groups: Sequence[Group]) -> Iterator[tuple[str, ...]]:
    """Exact answers in per cent, by length too, and the paired difference to all KV in points."""
    for budget in groups[0]:
        whole = [exact for group in groups for _, exact, _ in group[budget][ALL_KV]]
        for name in groups[0][budget]:
            read = (row for group in groups for row in group[budget][name])
            slots, exact, logprobs = zip(*read, strict=True)
            yield (
                *(budget, name, f"{fmean(slots):.0f}", f"{100 * fmean(exact):.1f}"),
                "" if name == ALL_KV else less(exact, whole),
                *(f"{100 * fmean(exact[index :: len(LENGTHS)]):.0f}" for index in range(len(LENGTHS))),
                f"{fmean(logprobs):.3f}",
            )


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = parser_of("quality.sharing", __doc__)
    parser.add_argument("--served", action="store_true", help="two budgets on the real server")
    parser.add_argument("--groups", type=int, metavar="N", help="default: 50; 15 that are served")
    parser.add_argument("--model", metavar="MODEL", help="default: SmolLM2-135M")
    parser.add_argument("--minutes", type=float, default=math.inf, metavar="M", help="begin no group after")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: in benchmarks/results")
    given = parser.parse_args(arguments)
    if given.json is None:
        name = "pressed" if given.served else "sharing"
        given.json = ROOT / "benchmarks" / "results" / f"quality-{name}.json"
    if given.groups is None:
        given.groups = 15 if given.served else 50
    if fault := fault_of(given.json):
        parser.error(f"--json: {fault}")
    return given


def main(arguments: list[str]) -> int:
    given, deadline = parse(arguments), time.monotonic()
    deadline += 60 * given.minutes
    record: dict[str, Any] = {"groups": []}
    if given.json.exists():
        record = json.loads(given.json.read_text())
    with Progress(console=Console(stderr=True)) as progress:
        path = given.model or str(smollm2.fetch(progress))
        name = Path(path).name if given.model else smollm2.NAME
        if record.setdefault("model", name) != name:
            print(f"{given.json} holds figures of {record['model']}: give another file", file=sys.stderr)
            return 1
        with Subject(path, name, progress) as subject:
            groups = (pressed.groups if given.served else groups_of)(subject.tokenizer, given.groups)
            bar = progress.add_task("groups", total=len(groups), completed=len(record["groups"]))
            left = groups[len(record["groups"]) :]
            read: Callable[[Sequence[Case]], Any] = partial(measure, subject)
            if given.served and left:
                read = pressed.Servers(subject).measure
            for cases in left:
                if time.monotonic() > deadline:
                    break
                record["groups"].append(read(cases))
                record |= {"chip": chip(), **made_by()}
                with replacing(given.json) as draft:
                    draft.write_text(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
                progress.advance(bar)
    if not record["groups"]:
        print("no group was begun in time: give more --minutes", file=sys.stderr)
        return 1
    console = Console()
    console.width = max(console.width, 140)
    shown = Table(*(pressed.HEAD if given.served else HEAD))
    for row in (pressed.rows if given.served else rows)(record["groups"]):
        shown.add_row(*row)
    console.print(shown)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
