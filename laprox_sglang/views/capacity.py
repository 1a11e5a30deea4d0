"""How many requests a KV pool holds at once, whole and with views, and in words when views pay."""

from typing import NamedTuple

from laprox_sglang.options.request import Options
from laprox_sglang.options.server import Config
from laprox_sglang.views.plan import Plan, make_plan

# The prompt that the start line speaks of (shorter where context or pool are small), and its answer as a
# share of the prompt.
EXAMPLE_PROMPT, EXAMPLE_ANSWER = 8192, 1 / 16
# Tokens: decoding fewer does not earn back what scoring costs, about five decode steps over the whole prompt
# (benchmarks/results/kernels-prune-h100.json).
SHORT_ANSWER = 8


def faster_steps(itemsize: int) -> int:
    """How many times as fast a decode step reads KV of so many bytes a number as KV of 16 bits. fp8 is
    counted so, as it is scored no faster: what scoring takes is more of its steps."""
    return 2 if itemsize == 1 else 1


REASONS = {
    "short": "they have fewer tokens behind the dense prefix than --laprox-min-tokens",
    "within_budget": "the budget grants them all that they have",
    "no_decode": "an answer of one token never reads a view",
}


class Load(NamedTuple):
    """Requests of one kind. Lengths are in tokens.

    Attributes:
        prompt, output: of each request.
        shared: first tokens of the prompt that all of them have in common.
    """

    prompt: int
    output: int
    shared: int = 0


class Hold(NamedTuple):
    """KV slots that requests of one kind pin.

    Attributes:
        common: what they pin together, once.
        each: what each pins beside that, at its last step.
        entry: the same while its prompt is computed, which is when it needs most.
    """

    common: int
    each: int
    entry: int

    def requests(self, slots: int) -> int:
        """How many run at once in a pool of ``slots``: one comes in while the others are at their ends."""
        rest = slots - self.common - self.entry
        return 0 if rest < 0 else 1 + rest // self.each

    def histories(self, slots: int, running: int, length: int) -> int:
        """How many histories of so many tokens lie beside what so many requests pin, evictable."""
        return max(0, slots - self.common - running * self.each) // max(1, length - self.common)


def whole(load: Load) -> Hold:
    """What stock SGLang pins: the tree holds what is shared once."""
    own = load.prompt - load.shared + load.output
    return Hold(load.shared, own, own)


def viewed(load: Load, plan: Plan) -> Hold:
    """What LaProx pins under ``plan``: a dense prefix, which may be shared, a view, and its tail."""
    if not plan.pruned:
        return whole(load)
    common = min(load.shared, plan.start)
    each = plan.start - common + plan.least + load.output
    return Hold(common, each, max(each, load.prompt - common + load.output))


def plan_of_load(config: Config, load: Load) -> Plan:
    return make_plan(config, Options(), load.prompt, load.output)


def expectation(config: Config, slots: int, context: int, itemsize: int) -> str:
    """One line for the start of a server: what a view saves in its pool, and when that pays.

    Args:
        slots: size of the KV pool.
        context: tokens of the longest request.
        itemsize: bytes of a number in the pool.
    """
    prompt = min(EXAMPLE_PROMPT, context // 2, slots // 4)
    load = Load(prompt, output=max(2, int(prompt * EXAMPLE_ANSWER)))
    plan = plan_of_load(config, load)
    shortest = SHORT_ANSWER * faster_steps(itemsize)
    pays = (
        "It pays where running prompts fill the pool, or long prompts get long answers; not for prompts "
        f"below {config.min_tokens} tokens, answers below about {shortest}, or short decoding in a pool "
        "that is never full."
    )
    if not plan.pruned:
        return f"Prompts of {prompt:,} tokens stay whole: {REASONS[plan.reason or '']}. {pays}"
    stock, ours = whole(load).requests(slots), viewed(load, plan).requests(slots)
    return (
        f"A prompt of {prompt:,} tokens pins {plan.start + plan.least:,} slots while it is answered: with "
        f"{load.output:,} tokens of answer, room for {ours:,} at once; unpruned, {stock:,}. {pays}"
    )
