"""Checks LaProx in the real server with the trained 7M model, on the GPU where there is one.

    python -m benchmarks.checks [needles conversations identity soak] [--quick]
                                [--json FILE|FOLDER] [--again]

needles   exact answers of one server at 10 % against the same prompts unpruned, memory checked every step
conversations  exact answers of 64 conversations of 6 turns at 5 %, beside stock's
identity  token ids at budget 1.0 against stock's, next to stock's own at another batch size
soak      minutes of random traffic with aborts, chunked prefill, retractions and mixed batches

All servers share one GPU, which must be free of others: the soak measures its memory once the other
servers have ended. On a CPU they run one after the other, and only with --quick, whose sizes show that
everything works but are too small to decide anything.
"""

import argparse
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from benchmarks.checks.plan import CHECKS, make_plan
from benchmarks.checks.record import Record, RecordError
from benchmarks.checks.rows import show
from benchmarks.checks.run import Run
from benchmarks.checks.servers import ON_GPU
from benchmarks.harness.provenance import results_file
from laprox_sglang.options.refusals import ATTENTION_BACKENDS


def interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def say(text: str) -> None:
    print(f"checks: {text}", file=sys.stderr, flush=True)


def parse() -> tuple[argparse.Namespace, Record]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.checks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checks", nargs="*", metavar="CHECK", help="some of them; default: all")
    parser.add_argument("--quick", action="store_true", help="few and short prompts, 30 seconds of soak")
    parser.add_argument("--seconds", type=int, help="length of the soak")
    parser.add_argument(
        "--attention-backend", choices=ATTENTION_BACKENDS["cuda"], help="default: SGLang's own choice"
    )
    parser.add_argument("--server-flags", default="", help="more flags for every server, in one string")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="merge the rows into FILE; in a folder it is checks-CHIP.json",
    )
    parser.add_argument("--again", action="store_true", help="check what FILE holds of this commit, too")
    arguments = parser.parse_args()
    unknown = set(arguments.checks) - set(CHECKS)
    if unknown:
        parser.error(f"no such check: {', '.join(sorted(unknown))}; there are {', '.join(CHECKS)}")
    if not ON_GPU and not arguments.quick and arguments.checks != ["conversations"]:
        parser.error("there is no GPU: without one only --quick runs, and conversations")
    if not ON_GPU and arguments.attention_backend:
        parser.error("--attention-backend needs a GPU")
    try:
        path = results_file(arguments.json, "checks-quick" if arguments.quick else "checks")
        return arguments, Record(path, arguments.quick)
    except RecordError as error:
        parser.error(f"--json: {error}")


def main() -> int:
    arguments, record = parse()
    names = arguments.checks or list(CHECKS)
    for name in [name for name in names if record.holds(name) and not arguments.again]:
        say(f"{name} is in {arguments.json} already, of this commit")
        names.remove(name)
    if not names:
        return 0
    plan = make_plan(names, arguments.quick, arguments.seconds)
    flags = ["--attention-backend", arguments.attention_backend] if arguments.attention_backend else []
    logs = Path(tempfile.mkdtemp(prefix="laprox-checks-"))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    run = Run(plan, [*flags, *arguments.server_flags.split()], logs, say, record.put)
    try:
        failures = run()
    except KeyboardInterrupt:
        say("stopped")
        return 130
    rows = run.rows()
    show(rows)
    for failure in failures:
        say(failure)
    unmet = [row for row in rows if row.met is False]
    if unmet:
        say(f"{len(unmet)} limits not met; server logs in {logs}")
    return 1 if unmet or failures else 0


if __name__ == "__main__":
    sys.exit(main())
