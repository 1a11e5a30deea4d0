"""Stock SGLang and LaProx under the same load, at Llama-3.1-8B shapes with random weights.

    python -m benchmarks.serving --server NAMES --agents --at 16,32     or --trace FILE; --rate, --stretch
    python -m benchmarks.serving --server NAMES --open-loop 0.1,0.3     chats by sglang.bench_serving
    python -m benchmarks.serving --server NAMES --workload b-full,f,e   a fixed number of requests

README.md says what they are. A server is started, unless --url gives one that runs. Needs a GPU, but for
--quick, which says nothing about speed.
"""

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import requests

from benchmarks.harness.arguments import parser as parser_of
from benchmarks.harness.client import ClientError
from benchmarks.harness.files import RecordError
from benchmarks.harness.provenance import results_file
from benchmarks.harness.server import ServerError, command, serve_all
from benchmarks.serving import plots
from benchmarks.serving.kinds import HOST_FLAGS, KINDS, SERVERS, SESSIONS
from benchmarks.serving.load.agents import agents
from benchmarks.serving.load.traces import TraceFileError, read_trace
from benchmarks.serving.load.workload import Session, Step
from benchmarks.serving.load.workloads import workloads
from benchmarks.serving.open_loop import OpenLoop
from benchmarks.serving.record import Record
from benchmarks.serving.run import LoadPoint, Row, brief, run
from benchmarks.serving.servers import Service, find_card, launch

# Of what a server was started with, that its flags do not say.
ENVIRONMENT = ("SGLANG_", "FLASHINFER_")
LIMITS = {"16k": 16_384, "32k": 32_768, "64k": 65_536, "128k": 131_072}
# The context of a server is the largest limit; its last tokens are its own.
RESERVED = 16
DRAWN = 400
# In small: agents of a sixty-fourth of the length, without long pauses.
SMALL = 64


class UsageError(Exception):
    """Something asked for that cannot be done; the message is one line."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = parser_of("serving", __doc__, Parser)
    load = parser.add_mutually_exclusive_group()
    load.add_argument("--trace", type=Path, metavar="FILE", help="recorded sessions: see traces.py")
    load.add_argument("--agents", action="store_true", help="sessions with the quantiles of recorded agents")
    load.add_argument("--open-loop", metavar="RATES", help="conversations a second, by sglang.bench_serving")
    load.add_argument("--workload", metavar="NAMES", help=f"some of {', '.join(workloads(False))}")
    parser.add_argument("--server", required=True, metavar="NAMES", help=f"some of {', '.join(SERVERS)}")
    parser.add_argument("--at", metavar="COUNTS", help="sessions at once, of --trace and --agents")
    parser.add_argument("--rate", metavar="RATES", help="sessions begun a second, of --trace and --agents")
    parser.add_argument("--stretch", type=float, metavar="FACTOR", help="recorded starts, times FACTOR")
    parser.add_argument("--limit", choices=LIMITS, default="64k", help="sessions are cut there; default: 64k")
    parser.add_argument("--longest-pause", type=float, default=60.0, help="seconds of an agent; default: 60")
    parser.add_argument("--seed", type=int, default=0, help="of --agents")
    parser.add_argument("--rounds", type=int, help="of each row, whose figures are their medians")
    parser.add_argument("--part", type=int, default=0, help="number of a part of a point; default: 0")
    parser.add_argument("--minutes", type=float, default=7.5, help="at most, of every point; default: 7.5")
    parser.add_argument("--url", help="a server that runs already; it must be the one that --server names")
    parser.add_argument("--print-command", action="store_true", help="say how the server is started, and end")
    parser.add_argument("--backend", help="--attention-backend of the servers; rows of its own")
    parser.add_argument(
        "--tp", type=int, default=1, help="GPUs of each server, by --tp-size; rows of their own"
    )
    parser.add_argument("--server-flags", default="", help="more flags for the server, in one string")
    parser.add_argument("--quick", action="store_true", help="everything in small; runs without a GPU too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="in a folder it is serving-CHIP.json")
    parser.add_argument("--again", action="store_true", help="measure what FILE holds of this commit, too")
    return parser.parse_args(arguments)


def choose(text: str, offered: Sequence[str], what: str) -> list[str]:
    """The names that were asked for, in the order in which they are offered."""
    wanted = [name.strip() for name in text.split(",")]
    if unknown := [name for name in wanted if name not in offered]:
        raise UsageError(f"no {what} {', '.join(map(repr, unknown))}; there are {', '.join(offered)}")
    return [name for name in offered if name in wanted]


def numbers(text: str | None, flag: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise UsageError(f"{flag} takes numbers, not {text!r}") from None
    if any(number <= 0 for number in found):
        raise UsageError(f"{flag} takes numbers above 0, not {text}")
    return found


def rows_of(given: argparse.Namespace, share: float) -> list[Row]:
    """What is to be measured; on several GPUs a row has another name.

    Raises:
        UsageError: nothing, or not so.
    """
    if given.tp < 1:
        raise UsageError(f"--tp takes a number of GPUs, not {given.tp}")
    rows = rows_on_one(given, share)
    return [across(row, given.tp) for row in rows] if given.tp > 1 else rows


def across(row: Row, gpus: int) -> Row:
    mark, what = f"tp{gpus}", f"{row.what}; {gpus} GPUs"
    if isinstance(row, OpenLoop):
        return replace(row, gpus=gpus)
    if isinstance(row, LoadPoint):
        load = row.load | {"curve": f"{row.load['curve']}-{mark}"}
        return replace(row, name=f"{row.name}-{mark}", what=what, load=load)
    return replace(row, name=f"{row.name}-{mark}", what=what)


def rows_on_one(given: argparse.Namespace, share: float) -> list[Row]:
    if given.workload:
        offered = workloads(given.quick, share)
        chosen = [offered[name] for name in choose(given.workload, list(offered), "workload")]
        return [replace(row, rounds=given.rounds or row.rounds) for row in chosen]
    if given.open_loop:
        return [OpenLoop(rate, given.quick) for rate in numbers(given.open_loop, "--open-loop")]
    if not (given.trace or given.agents):
        raise UsageError("nothing to measure: give --trace, --agents, --open-loop or --workload")
    sessions, source = sessions_of(given)
    curve = f"{source}-{given.limit}"
    kind = f"{source} agents, cut at {given.limit.upper()}, pauses of {given.longest_pause:g} s at most"
    rows: list[Row] = []

    def add(curve: str, name: str, at: float, unit: str, what: str, **load: Any) -> None:
        about = {"curve": curve, "at": at, "unit": unit}
        rows.append(LoadPoint(f"{curve}-{name}", what, about, sessions, **load))

    for count in numbers(given.at, "--at"):
        add(curve, f"{count:g}", count, "agents at once", f"{kind}, {count:g} at once", agents=int(count))
    for rate in numbers(given.rate, "--rate"):
        what = f"{kind}, {rate:g} begun a second"
        add(f"{curve}-rate", f"{rate:g}", rate, "agents begun a second", what, rate=rate)
    if given.stretch:
        if not any(session.start for session in sessions):
            raise UsageError(f"{given.trace} says no times at which sessions begin: give --at or --rate")
        what = f"{source}, cut at {given.limit.upper()}, {given.stretch:g} times the recorded times"
        name, unit = f"{given.stretch:g}", "times the recorded rate"
        add(f"{curve}-times", name, 1 / given.stretch, unit, what, stretch=given.stretch)
    if not rows:
        raise UsageError("how much load: give --at, --rate or --stretch")
    return rows


def sessions_of(given: argparse.Namespace) -> tuple[list[Session], str]:
    limit = LIMITS[given.limit] - RESERVED
    if given.trace:
        try:
            found, source = read_trace(given.trace, limit, given.longest_pause), "recorded"
            if any(session.start for session in found):
                source = given.trace.name.split(".")[0].replace("_", "-")
        except TraceFileError as error:
            raise UsageError(str(error)) from None
    else:
        found, source = agents(given.seed, DRAWN, limit, given.longest_pause), "drawn"
    return ([small(session) for session in found] if given.quick else found), source


def small(session: Session) -> Session:
    """A sixty-fourth of every length, a hundredth of every pause."""
    steps = []
    for step in session.steps:
        prompt, output = max(1, step.prompt // SMALL), min(16, max(1, step.output // SMALL))
        steps.append(Step(prompt, step.shared // SMALL, output, step.pause / 100))
    head = tuple((seed, max(1, count // SMALL)) for seed, count in session.head)
    return Session(session.seed, tuple(steps), head, session.start / SMALL)


def more_flags(given: argparse.Namespace) -> list[str]:
    more = ["--tp-size", str(given.tp)] if given.tp > 1 else []
    return more + shlex.split(given.server_flags)


@contextmanager
def served(name: str, given: argparse.Namespace, on_gpu: bool, logs: Path) -> Iterator[Service]:
    """The server, started here or not.

    Raises:
        ServerError: it did not start.
        UsageError: the one that runs is another.
    """
    if given.url:
        try:
            service = Service(name, given.url.rstrip("/"))
        except (requests.RequestException, KeyError) as error:
            raise UsageError(f"no SGLang server answers at {given.url!r}: {type(error).__name__}") from None
        if fault := service.fault(given.tp):
            raise UsageError(fault)
        yield service
        return
    say(f"{name}: starting, its log in {logs}")
    started = launch(name, logs, on_gpu, given.quick, given.backend, more_flags(given), given.tp)
    with serve_all([started]) as (server,):
        yield Service(name, server.url)


def run_all(
    names: list[str], rows: list[Row], record: Record, given: argparse.Namespace, on_gpu: bool
) -> int:
    """Drives one server after the other; returns how many points failed."""
    failed = 0
    logs = Path(tempfile.mkdtemp(prefix="laprox-serving-"))
    environment = {key: value for key, value in os.environ.items() if key.startswith(ENVIRONMENT)}
    for name in names:
        part = 0 if given.workload else given.part
        missing = [row for row in rows if given.again or not record.holds(row.name, name, part)]
        for row in (row for row in rows if row not in missing):
            say(f"{row.name} on {name}: there already, of this commit")
        if not (on_gpu or given.url) and HOST_FLAGS[0] in KINDS[name].flags:
            say(f"{name}: left out, a CPU has no host tier")
        elif missing:
            with served(name, given, on_gpu, logs) as service:
                about = {"slots": service.slots, "environment": environment, "settings": service.settings}
                record.put_server("full", name, about)
                long = (given.trace or given.agents) and not given.quick
                if long and service.context < LIMITS[given.limit]:
                    raise UsageError(f"{name} has a context of {service.context:,}: give a smaller --limit")
                for row in missing:
                    measured = run(row, service, record, given.minutes, given.part, say)
                    failed += "failed" in measured
                    print(f"{row.name} on {name}, {service.backend}: {brief(measured)}", flush=True)
    return failed


def say(text: str) -> None:
    print(f"serving: {text}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    try:
        given = parse(arguments)
        card = find_card()
        names = choose(given.server, SERVERS, "server")
        if given.open_loop and any(SESSIONS in KINDS[name].flags for name in names):
            raise UsageError("SGLang's client names no sessions: give --trace or --agents for these servers")
        if given.url and len(names) > 1:
            raise UsageError("--url is one server, and --server names several")
        if not (card or given.quick or given.url or given.print_command):
            raise UsageError("needs a GPU; --quick runs anywhere")
        if given.print_command:
            folder = Path(tempfile.gettempdir()) / "laprox-serving-model"
            folder.mkdir(exist_ok=True)
            for name in names:
                more = more_flags(given)
                started = launch(name, folder, not given.quick, given.quick, given.backend, more, given.tp)
                print(shlex.join(["python", *command(*started.arguments)[1:], "--port", "30000"]))
            return 0
        if card and not (given.quick or given.url) and (fault := card.fault()):
            raise UsageError(fault)
        rows = rows_of(given, card.share if card else 1.0)
        path = results_file(given.json, "serving-quick" if given.quick else "serving")
        record = Record(path, given.quick, workloads(given.quick), given.backend)
        failed = run_all(names, rows, record, given, card is not None)
    except (UsageError, RecordError, ServerError, ClientError) as error:
        say(str(error))
        return 2 if isinstance(error, (UsageError, RecordError)) else 1
    except KeyboardInterrupt:
        say("stopped")
        return 130
    if path is not None and record.saved:
        print(plots.written(record.content, path))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
