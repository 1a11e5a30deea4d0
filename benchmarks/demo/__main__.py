"""Stock SGLang and LaProx at three budgets, one after the other: the same questions and one conversation.

The last line on standard output is one JSON object with the figures.
"""

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.demo.workload import QUESTIONS, TURNS, Reply, Workload
from benchmarks.harness.server import CPU_FLAGS, Launch, ServerError, serve_all
from laprox_tools.needle import MODEL_PATH

STOCK = "stock"
BUDGETS = ("0.2", "0.1", "0.05")
POOL = 65_536


@dataclass(frozen=True)
class Row:
    """Figures of one server.

    Attributes but the last two are of the questions:
        exact: share of the answers that are right in all their words.
        slots_held: mean over the requests of the KV slots held at the last step.
        slots_freed: KV slots that pruning returned to SGLang's allocator, over all requests.
        hit_tokens: prompt tokens that came from the prefix cache, over all requests.
        seconds: from the first question to the last reply.
        turns: replies of the conversation.
        pruned: share of all requests, turns among them, that were pruned.
    """

    exact: float
    slots_held: float
    slots_freed: int
    hit_tokens: int
    seconds: float
    turns: list[Reply]
    pruned: float


def measure(name: str, workload: Workload, log: Path, progress: Progress) -> Row:
    """Starts a server, sends it the workload, and stops it.

    Raises:
        ServerError: the server failed.
    """
    bar = progress.task_ids[0]
    progress.update(bar, description=f"{name}: server starts")
    launch = Launch(name, flags_of(name), log)
    with serve_all([launch]) as (server,):
        progress.advance(bar)
        progress.update(bar, description=f"{name}: answers")
        replies, started = [], time.monotonic()
        for reply in workload.send(server.url):
            replies.append(reply)
            progress.advance(bar)
        seconds = time.monotonic() - started
        freed = None if name == STOCK else server.laprox()
        turns = []
        for reply in workload.talk(server.url):
            turns.append(reply)
            progress.advance(bar)
        pruned = 0 if name == STOCK else server.laprox()["pruned"]
    return make_row(replies, seconds, freed, turns, pruned)


def flags_of(name: str) -> list[str]:
    flags = [
        "--model-path",
        str(MODEL_PATH),
        *CPU_FLAGS,
        "--max-total-tokens",
        str(POOL),
        "--enable-cache-report",
    ]
    if name != STOCK:
        flags += ["--enable-laprox", "--laprox-budget", name]
    return flags


def make_row(
    replies: list[Reply], seconds: float, totals: dict[str, Any] | None, turns: list[Reply], pruned: int
) -> Row:
    """
    Args:
        totals: of a LaProx server after the questions; None for a stock one.
    """
    if totals is None:
        held, freed = sum(reply.prompt_tokens + reply.new_tokens for reply in replies), 0
    else:
        held, freed = totals["slots_held"], totals["slots_freed"]
    return Row(
        exact=sum(reply.exact for reply in replies) / len(replies),
        slots_held=held / len(replies),
        slots_freed=freed,
        hit_tokens=sum(reply.hit_tokens for reply in replies),
        seconds=seconds,
        turns=turns,
        pruned=pruned / (len(replies) + len(turns)),
    )


def make_table(rows: dict[str, Row]) -> Table:
    table = Table(title=f"{QUESTIONS} questions to each server")
    table.add_column("budget")
    # Two lines each, so that the table fits a terminal of 80 columns.
    for heading in (
        "exact\nanswers",
        "slots\nheld",
        "slots\nfreed",
        "prefix-hit\ntokens",
        "requests\npruned",
        "seconds",
    ):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row.exact:.1%}",
            f"{row.slots_held:,.1f}",
            f"{row.slots_freed:,}",
            f"{row.hit_tokens:,}",
            f"{row.pruned:.0%}",
            f"{row.seconds:.1f}",
        )
    return table


def make_turns_table(rows: dict[str, Row]) -> Table:
    table = Table(title=f"a conversation of {len(TURNS)} turns: its answers, prefix-hit of all prompt tokens")
    table.add_column("budget")
    for turn in range(len(TURNS)):
        table.add_column(f"turn {turn + 1}", justify="right")
    for name, row in rows.items():
        table.add_row(
            name,
            *(
                f"{'exact' if turn.exact else 'wrong'}\n{turn.hit_tokens:,} of {turn.prompt_tokens:,}"
                for turn in row.turns
            ),
        )
    return table


def main() -> int:
    workload = Workload()
    logs = Path(tempfile.mkdtemp(prefix="laprox-demo-"))
    names = (STOCK, *BUDGETS)
    columns = (TextColumn("{task.description:<21}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    rows: dict[str, Row] = {}
    try:
        with Progress(*columns, console=console) as progress:
            # A start takes about as long as ten answers; both are one step, so that the bar counts something.
            progress.add_task("", total=len(names) * (1 + QUESTIONS + len(TURNS)))
            for name in names:
                rows[name] = measure(name, workload, logs / f"{name}.log", progress)
    except ServerError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: stopped", file=sys.stderr)
        return 130

    output = Console()
    output.print(make_table(rows))
    output.print(make_turns_table(rows))
    unpruned = [name for name in BUDGETS if rows[name].pruned < 1]
    if unpruned:
        print(f"demo: not all requests were pruned at budget {', '.join(unpruned)}; server logs in {logs}")
    fields = ("exact", "slots_held", "hit_tokens", "pruned")
    figures = {name: {field: getattr(row, field) for field in fields} for name, row in rows.items()}
    turns = {
        name: {field: [getattr(turn, field) for turn in row.turns] for field in ("exact", "hit_tokens")}
        for name, row in rows.items()
    }
    print(json.dumps(figures | {"turns": turns}))
    return 1 if unpruned else 0


if __name__ == "__main__":
    sys.exit(main())
