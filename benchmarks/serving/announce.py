"""Says what will be measured, and how long that takes, before anything starts."""

from collections.abc import Sequence

from benchmarks.serving.run import Runner
from benchmarks.serving.workload import Workload

FIRST_START = (
    "the first start on a fresh machine compiles besides: kernels for about a minute, and SGLang's prefill "
    "graphs for about three"
)


def announce(
    runner: Runner, chosen: Sequence[Workload], plan: Sequence[tuple[str, list[str]]], start: int
) -> None:
    """
    Args:
        plan: (pool, servers) of every start.
        start: seconds that one takes.
    """
    total = start * len(plan)
    for row in chosen:
        parts = {
            name: row.guess(name)
            for pool, names in plan
            if pool == row.pool
            for name in runner.missing(row, names, len(names) > 1)
        }
        guesses = ", ".join(f"{name} about {seconds} s" for name, seconds in parts.items())
        runner.say(f"{row.name}: {row.what}; {guesses or 'there already, or not asked for'}")
        total += sum(parts.values())
    runner.say(f"about {total} s in all, {start} s of it for each of {len(plan)} starts")
    if plan and start and runner.on_gpu:
        runner.say(FIRST_START)
