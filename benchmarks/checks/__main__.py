"""Checks LaProx in the real server with the trained 7M model, on the GPU where there is one.

    python -m benchmarks.checks [needles conversations identity soak] [--quick]
                                [--json FILE|FOLDER] [--again]

README.md says what they are. The servers of a check run one after the other, on a GPU that must be free of
others: the soak measures its memory. Without a GPU there is only --quick, which decides nothing, and
conversations.
"""

import argparse
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from benchmarks.checks.plan import CHECKS, make_check, run
from benchmarks.checks.record import Record
from benchmarks.checks.rows import Row, show
from benchmarks.checks.servers import ON_GPU
from benchmarks.checks.soak import Soak
from benchmarks.harness.arguments import parser as parser_of
from benchmarks.harness.files import RecordError
from benchmarks.harness.provenance import results_file
from benchmarks.harness.server import ServerError
from laprox_sglang.options.refusals import ATTENTION_BACKENDS


def interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def say(text: str) -> None:
    print(f"checks: {text}", file=sys.stderr, flush=True)


def parse() -> tuple[argparse.Namespace, Record]:
    parser = parser_of("checks", __doc__)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help="some of them; default: all")
    parser.add_argument("--quick", action="store_true", help="few and short prompts, 30 seconds of soak")
    parser.add_argument("--seconds", type=int, help="length of the soak")
    parser.add_argument(
        "--attention-backend", choices=ATTENTION_BACKENDS["cuda"], help="default: SGLang's own choice"
    )
    parser.add_argument("--server-flags", default="", help="more flags for every server, in one string")
    parser.add_argument("--json", type=Path, metavar="FILE", help="in a folder it is checks-CHIP.json")
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
    flags = ["--attention-backend", arguments.attention_backend] if arguments.attention_backend else []
    flags += arguments.server_flags.split()
    logs = Path(tempfile.mkdtemp(prefix="laprox-checks-"))
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    rows: list[Row] = []
    for name in names:
        check = make_check(name, arguments.quick, arguments.seconds)
        try:
            backends = run(check, flags, logs, say)
        except ServerError as error:
            say(str(error))
            rows.append(Row(name, "servers that failed", 1, most=0))
            continue
        except KeyboardInterrupt:
            say("stopped")
            return 130
        details = {"memory_samples": check.samples} if isinstance(check, Soak) else {}
        record.put(name, check.rows(), details, backends)
        rows += check.rows()
    show(rows)
    unmet = [row for row in rows if row.met is False]
    if unmet:
        say(f"{len(unmet)} limits not met; server logs in {logs}")
    return 1 if unmet else 0


if __name__ == "__main__":
    sys.exit(main())
