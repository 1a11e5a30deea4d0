"""Stock SGLang and LaProx at three budgets, one after the other: the same questions and one conversation.

The last line on standard output is one JSON object with the figures.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.demo.questions import QUESTIONS, questions, send, talk
from benchmarks.harness.server import CPU_FLAGS, Launch, ServerError, serve_all
from laprox_tools.needle import MODEL_PATH

STOCK = "stock"
BUDGETS = ("0.2", "0.1", "0.05")
POOL = "65536"


def flags_of(name: str) -> list[str]:
    flags = ["--model-path", str(MODEL_PATH), *CPU_FLAGS, "--max-total-tokens", POOL, "--enable-cache-report"]
    return flags if name == STOCK else [*flags, "--enable-laprox", "--laprox-budget", name]


def measure(name: str, log: Path) -> dict[str, Any]:
    """Starts a server, sends it the questions and the conversation, and stops it.

    Returns:
        ``exact``: share of the answers that are right in all their words; ``slots_held``: KV slots that a
        request holds at its last step, mean; ``slots_freed``: slots that pruning returned to SGLang's
        allocator, sum; ``hit_tokens``: prompt tokens that came from the prefix cache, sum; ``pruned``: share
        of all requests, turns among them, that were pruned; ``turns``: the replies of the conversation.

    Raises:
        ServerError: the server failed.
    """
    with serve_all([Launch(name, flags_of(name), log)]) as (server,):
        replies = list(send(server.url, questions()))
        held, freed = sum(reply.prompt_tokens + reply.new_tokens for reply in replies), 0
        if name != STOCK:
            totals = server.laprox()
            held, freed = totals["slots_held"], totals["slots_freed"]
        turns = list(talk(server.url))
        pruned = 0 if name == STOCK else server.laprox()["pruned"]
    return {
        "exact": sum(reply.exact for reply in replies) / len(replies),
        "slots_held": held / len(replies),
        "slots_freed": freed,
        "hit_tokens": sum(reply.hit_tokens for reply in replies),
        "pruned": pruned / (len(replies) + len(turns)),
        "turns": turns,
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
        turns = [f"{'yes' if turn.exact else 'no'}, {turn.hit_tokens:,}" for turn in row["turns"]]
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
    for row in rows.values():
        row["turns"] = {
            "exact": [turn.exact for turn in row["turns"]],
            "hit_tokens": [turn.hit_tokens for turn in row["turns"]],
        }
    print(json.dumps(rows))
    return 1 if unpruned else 0


if __name__ == "__main__":
    sys.exit(main())
