"""Stock SGLang against LaProx under the same requests, at Llama-3.1-8B shapes with random weights.

    python -m benchmarks.serving [--workload a,b,...] [--server stock|laprox|both] [--quick]
                                 [--json FILE] [--attach stock=URL,laprox=URL]

Needs a GPU; --quick runs every workload in small, anywhere, and says nothing about speed. With --json,
every row is merged into FILE as soon as it is measured, and pictures are drawn beside it.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import requests
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.harness.server import ServerError, serve_all
from benchmarks.serving import plots
from benchmarks.serving.record import Record, RecordError, table
from benchmarks.serving.run import Runner
from benchmarks.serving.servers import Machine, Service
from benchmarks.serving.workloads import SERVERS, Workload, workloads


class UsageError(Exception):
    """Something asked for that cannot be done; the message is one line."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(
        dict.fromkeys(name.split("-")[0] if "sweep" in name else name for name in workloads(False))
    )
    parser.add_argument("--workload", metavar="NAMES", help=f"comma-separated, all by default: {names}")
    parser.add_argument("--server", choices=[*SERVERS, "both"], default="both")
    parser.add_argument("--quick", action="store_true", help="everything in small; runs without a GPU too")
    parser.add_argument("--json", metavar="FILE", type=Path, help="merge the rows into FILE")
    parser.add_argument(
        "--attach",
        metavar="stock=URL,laprox=URL",
        help="drive servers that run already; their KV pool must be the one that the workload means",
    )
    return parser.parse_args(arguments)


def choose(names: str | None, table: dict[str, Workload]) -> list[Workload]:
    """The workloads that were asked for, in the order in which they run."""
    if names is None:
        return list(table.values())
    wanted = [name.strip() for name in names.split(",")]
    known = {*table, "sweep"}
    if unknown := [name for name in wanted if name not in known]:
        raise UsageError(f"no workload {', '.join(map(repr, unknown))}; there are {', '.join(sorted(known))}")
    return [
        row for name, row in table.items() if name in wanted or name.split("-")[0] in {*wanted} & {"sweep"}
    ]


def attached(text: str, servers: list[str]) -> list[Service]:
    pairs = dict(part.partition("=")[::2] for part in text.split(","))
    if unknown := [name for name in pairs if name not in SERVERS]:
        raise UsageError(f"--attach takes stock=URL, laprox=URL or both, not {', '.join(map(repr, unknown))}")
    services = []
    for name in (name for name in servers if name in pairs):
        try:
            services.append(Service(name, pairs[name].rstrip("/")))
        except (requests.RequestException, KeyError) as error:
            raise UsageError(f"no SGLang server answers at {pairs[name]!r}: {type(error).__name__}") from None
        if (services[-1].totals() is None) != (name == SERVERS[0]):
            raise UsageError(f"the server at {pairs[name]} is not {name}")
    if not services:
        raise UsageError(f"--attach gives {', '.join(pairs)}, and --server asks for {', '.join(servers)}")
    return services


@contextmanager
def started(machine: Machine, names: list[str], pool: str, logs: Path) -> Iterator[list[Service]]:
    with serve_all([machine.launch(name, pool, logs) for name in names]) as up:
        yield [Service(name, server.url) for name, server in zip(names, up, strict=True)]


def run(runner: Runner, machine: Machine, chosen: list[Workload], servers: list[str], logs: Path) -> None:
    """Starts each server once per pool, and drives one at a time."""
    for pool in dict.fromkeys(workload.pool for workload in chosen):
        rows = [workload for workload in chosen if workload.pool == pool]
        needed = [name for name in servers if any(name in row.servers for row in rows)]
        for names in [needed] if machine.together(pool) else [[name] for name in needed]:
            runner.say(f"{' and '.join(names)}: starting, {pool} pool")
            try:
                with started(machine, names, pool, logs) as services:
                    runner.run_all(rows, services)
            except ServerError as error:
                # The other servers may be well.
                runner.fail(str(error))


def main(arguments: list[str]) -> int:
    try:
        given = parse(arguments)
        machine = Machine(torch.cuda.is_available(), given.quick)
        if not (machine.gpu or machine.quick or given.attach):
            raise UsageError("needs a GPU; --quick runs anywhere")
        offered = workloads(given.quick)
        chosen = choose(given.workload, offered)
        servers = list(SERVERS) if given.server == "both" else [given.server]
        record = Record(given.json, given.quick, offered)
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
        runner = Runner(record, machine, progress, given.json)
        runner.say(f"server logs in {logs}")
        runner.announce(chosen, servers if services is None else [service.name for service in services])
        try:
            if services is not None:
                runner.run_all(chosen, services)
            else:
                run(runner, machine, chosen, servers, logs)
        except KeyboardInterrupt:
            runner.fail("stopped")
            code = 130
    Console(width=None if console.is_terminal else 120).print(
        table(record, [workload.name for workload in chosen])
    )
    if given.json is not None and record.saved:
        try:
            pictures = plots.draw(record.content, given.json)
            print(f"written: {', '.join(map(str, [given.json, *pictures]))}")
        except ImportError:
            print(f"written: {given.json}; no pictures: matplotlib is not installed")
    for failure in runner.failures:
        print(f"serving: {failure}", file=sys.stderr)
    return code or (1 if runner.failures else 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
