"""Stock SGLang and LaProx at three budgets, one after the other: the same questions and one conversation.

The last line on standard output is one JSON object with the figures.
"""

import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness.server import CPU_FLAGS, Launch, ServerError, serve_all
from laprox_tools.needle import CLASSES, DIGITS, MODEL_PATH, Sample, Task, words

STOCK = "stock"
BUDGETS = ("0.2", "0.1", "0.05")
POOL = "65536"
SEED, QUESTIONS = 20261123, 16
# Lengths of whole prompts; a prompt ends up to 15 tokens below the length drawn.
SHORTEST, LONGEST = 1515, 3000
SYSTEM_SENTENCES, FACT_SHARE = 25, 0.3
# Sentences that each turn of the conversation adds.
TURNS = [120, 15, 15, 15]
NEW_TOKENS, AT_ONCE = 32, 7


def questions() -> list[Sample]:
    """Prompts behind one system prompt, always the same ones."""
    task, lengths = Task(SEED), random.Random(SEED)
    system = ["<s>", *" ".join(task.filler() for _ in range(SYSTEM_SENTENCES)).split()]
    found = []
    for i in range(QUESTIONS):
        # A sample brings an <s> of its own, which is dropped.
        length = lengths.randint(SHORTEST, LONGEST) - len(system) + 1
        sample = task.sample(length, 1, FACT_SHARE, few_words=i % 2 == 0)
        # A first word that nobody else has: nothing but the system prompt is shared, so the hits
        # do not depend on who comes first.
        context = [*system, words()[CLASSES["NOUN"][i]], *sample.context[2:]]
        found.append(Sample(context, sample.questions, sample.answers))
    return found


def flags_of(name: str) -> list[str]:
    flags = ["--model-path", str(MODEL_PATH), *CPU_FLAGS, "--max-total-tokens", POOL, "--enable-cache-report"]
    return flags if name == STOCK else [*flags, "--enable-laprox", "--laprox-budget", name]


def measure(name: str, log: Path) -> dict[str, Any]:
    """Starts a server, sends it the questions and the conversation, and stops it.

    Returns:
        ``exact``: share of the answers that are right in all their words; ``slots_held``: KV slots that a
        request holds at its last step, mean; ``slots_freed``: slots that pruning returned to SGLang's
        allocator, sum; ``hit_tokens``: prompt tokens that came from the prefix cache, sum; ``pruned``: share
        of all requests, turns among them, that were pruned; ``turns``: ``exact`` and ``hit_tokens`` of each
        turn of the conversation.

    Raises:
        ServerError: the server failed.
    """
    asked = questions()
    requests = [{"ids": sample.prompt_ids(), "tokens": NEW_TOKENS} for sample in asked]
    turns = Task(SEED).conversation(TURNS, FACT_SHARE)
    with serve_all([Launch(name, flags_of(name), log)]) as (server,):
        # The first one goes alone, so that all others can hit the system prompt.
        replies = server.generate_all(requests[:1], 1) + server.generate_all(requests[1:], AT_ONCE)
        said = [reply["meta_info"] for reply in replies]
        held, freed = sum(one["prompt_tokens"] + one["completion_tokens"] for one in said), 0
        if name != STOCK:
            totals = server.laprox()
            held, freed = totals["slots_held"], totals["slots_freed"]
        talk = [reply for _, reply in server.talk(turns, DIGITS)]
        pruned = 0 if name == STOCK else server.laprox()["pruned"]
    exact = [
        reply["output_ids"][:DIGITS] == sample.answer_ids()
        for reply, sample in zip(replies, asked, strict=True)
    ]
    return {
        "exact": sum(exact) / len(replies),
        "slots_held": held / len(replies),
        "slots_freed": freed,
        "hit_tokens": sum(one["cached_tokens"] for one in said),
        "pruned": pruned / (len(replies) + len(talk)),
        "turns": {
            "exact": [
                reply["output_ids"] == turn.answer_ids for reply, turn in zip(talk, turns, strict=True)
            ],
            "hit_tokens": [reply["meta_info"]["cached_tokens"] for reply in talk],
        },
    }


def table(rows: dict[str, dict[str, Any]]) -> Table:
    shown = Table(title=f"{QUESTIONS} questions to each server, then a conversation")
    shown.add_column("budget")
    # Two lines each, so that the table fits a terminal of 80 columns.
    for heading in (
        *("exact\nanswers", "slots\nheld", "slots\nfreed", "prefix-hit\ntokens", "requests\npruned"),
        "turns: exact,\nprefix-hit tokens",
    ):
        shown.add_column(heading, justify="right")
    for name, row in rows.items():
        turns = [
            f"{'yes' if exact else 'no'}, {hits:,}"
            for exact, hits in zip(row["turns"]["exact"], row["turns"]["hit_tokens"], strict=True)
        ]
        shown.add_row(
            *(name, f"{row['exact']:.1%}", f"{row['slots_held']:,.1f}", f"{row['slots_freed']:,}"),
            *(f"{row['hit_tokens']:,}", f"{row['pruned']:.0%}", "\n".join(turns)),
        )
    return shown


def main() -> int:
    logs = Path(tempfile.mkdtemp(prefix="laprox-demo-"))
    rows: dict[str, dict[str, Any]] = {}
    try:
        for name in (STOCK, *BUDGETS):
            print(f"{name}: the server starts, then answers, in about a minute", file=sys.stderr)
            rows[name] = measure(name, logs / f"{name}.log")
    except ServerError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: stopped", file=sys.stderr)
        return 130
    Console().print(table(rows))
    unpruned = [name for name in BUDGETS if rows[name]["pruned"] < 1]
    if unpruned:
        print(f"demo: not all requests were pruned at budget {', '.join(unpruned)}; server logs in {logs}")
    print(json.dumps(rows))
    return 1 if unpruned else 0


if __name__ == "__main__":
    sys.exit(main())
