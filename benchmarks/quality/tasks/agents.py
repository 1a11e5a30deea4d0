"""An agent's conversation: twelve turns with a page of JSON each, and a question about any of them."""

import json
import random
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle, islice

from benchmarks.quality.tasks.chat import Draft, Message, Question, cases, what
from benchmarks.quality.tasks.ruler import number
from benchmarks.quality.tasks.task import Task
from benchmarks.quality.tasks.words import CITIES, NAMES, WORDS

TURNS = 12
# What a tool lists, and what it says of each besides who, what and where.
TOOLS = {"order": "tracking", "ticket": "phone", "payment": "reference"}
Record = dict[str, str]
BREAK = ",\n "


def records(draw: random.Random) -> Iterator[Record]:
    for kind in cycle(TOOLS):
        yield {
            kind: number(draw),
            "customer": draw.choice(NAMES),
            "item": draw.choice(WORDS),
            "city": draw.choice(CITIES),
            "status": draw.choice(("open", "closed", "waiting")),
            TOOLS[kind]: number(draw, 7),
        }


def draft(draw: random.Random) -> Draft:
    made = records(draw)
    known = list(islice(made, 4 * len(TOOLS)))[:: len(TOOLS) + 1]
    asked = [field(one) if index % 2 else call(one) for index, one in enumerate(known)]
    unlike = (json.dumps(one) for one in made if not any(alike(one, other) for other in known))
    return Draft([json.dumps(one) for one in known], asked, unlike, messages=conversation, between=BREAK)


def alike(one: Record, other: Record) -> bool:
    """Whether a question about the one could mean the other."""
    return all(one[name] == other[name] for name in ("customer", "item", "city")) or bool(
        {*list(one.values())[:1]} & {*list(other.values())[:1]}
    )


def field(one: Record) -> Question:
    kind, key = next(iter(one.items()))
    return what("field", f"{TOOLS[kind]} number of {kind} {key}", one[TOOLS[kind]])


def call(one: Record) -> Question:
    kind, key = next(iter(one.items()))
    text = f"Close the {kind} of {one['customer']} from {one['city']} about the {one['item']}."
    return Question("call", text, f'{{"name": "close_{kind}", "arguments": {{"{kind}": "', key, '"}}')


def conversation(lines: Sequence[str]) -> list[Message]:
    messages: list[Message] = []
    for turn in range(TURNS):
        kind, page = list(TOOLS)[turn % len(TOOLS)], turn // len(TOOLS)
        of_kind = [line for line in lines if line.startswith(f'{{"{kind}"')]
        share = -(-len(of_kind) * len(TOOLS) // TURNS)
        listed = of_kind[page * share : (page + 1) * share]
        call = {"name": f"list_{kind}s", "arguments": {"page": page + 1}}
        messages += [
            {"role": "user", "content": f"Look at page {page + 1} of the {kind}s."},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
            {"role": "tool", "content": f"[{BREAK.join(listed)}]"},
            {"role": "assistant", "content": f"I have read page {page + 1} of the {kind}s."},
        ]
    return messages


TASK = Task(partial(cases, draft), lengths=(8192, 16384, 28672))
