"""Stock SGLang against LaProx under the same requests, at Llama-3.1-8B shapes with random weights.

    python -m benchmarks.serving [--workload b,f,...] [--server stock,laprox,stock-fp8] [--backend NAME]
                                 [--json FILE|FOLDER] [--again] [--quick] [--attach stock=URL,...]

Each server takes the attention backend of its own choice; --backend gives stock and LaProx one. Needs a
GPU; --quick runs every workload in small, anywhere, and says nothing about speed. With --json, every row is
merged into the file as soon as it is measured, and pictures are drawn beside it; what the file holds of this
commit is not measured again.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.harness.provenance import results_file
from benchmarks.harness.server import ServerError, serve_all
from benchmarks.serving import plots
from benchmarks.serving.announce import announce
from benchmarks.serving.arguments import UsageError, attached, choose, parse
from benchmarks.serving.card import find_card
from benchmarks.serving.record import Record, RecordError
from benchmarks.serving.run import Runner
from benchmarks.serving.servers import Machine, Service
from benchmarks.serving.table import table
from benchmarks.serving.workload import SERVERS, Workload
from benchmarks.serving.workloads import FAMILIES, workloads

# Of what a server was started with, that its flags do not say.
ENVIRONMENT = ("SGLANG_", "FLASHINFER_")
# A start where everything is compiled; without a GPU, and with one.
START_SECONDS = {False: 20, True: 80}


@contextmanager
def started(machine: Machine, names: list[str], pool: str, logs: Path) -> Iterator[list[Service]]:
    with serve_all([machine.launch(name, pool, logs) for name in names]) as up:
        yield [Service(name, server.url) for name, server in zip(names, up, strict=True)]


def starts(
    runner: Runner, machine: Machine, rows: list[Workload], servers: list[str]
) -> list[tuple[str, list[str]]]:
    """(pool, servers) of every start: what fits beside each other, and has something to measure."""
    found = []
    for pool in dict.fromkeys(row.pool for row in rows):
        of_pool = [row for row in rows if row.pool == pool]
        used = {name for row in of_pool for name in servers if name in row.servers}
        beside = machine.together(pool, len(used))
        missing = {name for row in of_pool for name in runner.missing(row, servers, beside)}
        needed = [name for name in servers if name in missing]
        groups = [needed] if machine.together(pool, len(needed)) else [[name] for name in needed]
        found += [(pool, group) for group in groups if group]
    return found


def run(
    runner: Runner, rows: list[Workload], plan: list[tuple[str, list[str]]], machine: Machine, logs: Path
) -> None:
    """Drives one server at a time."""
    environment = {key: value for key, value in os.environ.items() if key.startswith(ENVIRONMENT)}
    for pool, names in plan:
        runner.say(f"{' and '.join(names)}: starting, {pool} pool")
        try:
            with started(machine, names, pool, logs) as services:
                runner.run_all(
                    [row for row in rows if row.pool == pool], services, {"environment": environment}
                )
        except ServerError as error:
            # The other servers may be well.
            runner.fail(str(error))


def main(arguments: list[str]) -> int:
    try:
        given = parse(arguments, __doc__)
        card = find_card()
        if not (card or given.quick or given.attach):
            raise UsageError("needs a GPU; --quick runs anywhere")
        if card and not (given.quick or given.attach) and (fault := card.fault()):
            raise UsageError(fault)
        machine = Machine(card, given.quick, given.backend)
        offered = workloads(given.quick, *((card.fixed_slots, card.share) if card else ()))
        chosen = [offered[name] for name in choose(given.workload, list(offered), "workload", FAMILIES)]
        servers = choose(given.server, SERVERS, "server")
        path = results_file(given.json, "serving-quick" if given.quick else "serving")
        record = Record(path, given.quick, offered, given.backend)
        services = attached(given.attach, servers) if given.attach else None
    except (UsageError, RecordError) as error:
        print(f"serving: {error}", file=sys.stderr)
        return 2
    logs = Path(tempfile.mkdtemp(prefix="laprox-serving-"))
    console = Console(stderr=True)
    columns = (
        *(TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn()),
        *(TextColumn("{task.fields[rate]}"), TimeElapsedColumn()),
    )
    code = 0
    # Drawing takes time from the thread that notes when tokens come.
    with Progress(*columns, console=console, refresh_per_second=2) as progress:
        runner = Runner(record, machine, progress, given.again)
        try:
            if services is not None:
                names = [service.name for service in services]
                announce(
                    runner, chosen, [(pool, names) for pool in dict.fromkeys(row.pool for row in chosen)], 0
                )
                runner.run_all(chosen, services, {})
            else:
                for name in [name for name in servers if machine.lacks(name)]:
                    runner.say(f"{name}: left out, {machine.lacks(name)}")
                    servers.remove(name)
                runner.say(f"server logs in {logs}")
                plan = starts(runner, machine, chosen, servers)
                announce(runner, chosen, plan, START_SECONDS[card is not None])
                run(runner, chosen, plan, machine, logs)
        except KeyboardInterrupt:
            runner.fail("stopped")
            code = 130
    shown = table(record, [workload.name for workload in chosen])
    Console(width=None if console.is_terminal else 130).print(shown)
    if path is not None and record.saved:
        print(plots.written(record.content, path))
    for failure in runner.failures:
        print(f"serving: {failure}", file=sys.stderr)
    return code or (1 if runner.failures else 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
