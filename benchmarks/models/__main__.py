"""Tries SGLang's classes of models with LaProx, each as a tiny model of random weights, on a CPU.

    python -m benchmarks.models [MODEL ...] [--json FILE] [--seed N] [--again]

Stock SGLang and LaProx answer the same prompts. Opted out and at budget 1.0 ids and log-probs must be
stock's, over views those of Hugging Face's code over the same cells. A run goes on where the last one
stopped. That a model is refused, or not run here by stock, is a result; the command fails if LaProx alone
fails, or answers otherwise.
"""

import os
import sys
from argparse import Namespace
from importlib import import_module
from pathlib import Path

# Where SGLang has a kernel in Triton alone, as for fp8. Read when Triton is imported.
os.environ["TRITON_INTERPRET"] = "1"
# Threads of OpenMP do not live on in a fork.
os.environ["OMP_NUM_THREADS"] = "1"

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.harness.arguments import parser as parser_of
from benchmarks.harness.files import RecordError
from benchmarks.models.candidates import CANDIDATES
from benchmarks.models.record import Record
from benchmarks.models.trial import attempt
from benchmarks.models.verdict import in_words, is_right

COLUMNS = (TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


def parse(arguments: list[str]) -> tuple[Namespace, Record]:
    parser = parser_of("models", __doc__)
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help=f"of {', '.join(CANDIDATES)}; default: all"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="a line for each model")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and prompts (default 0)")
    parser.add_argument("--again", action="store_true", help="try what FILE holds of this commit, too")
    given = parser.parse_args(arguments)
    if unknown := sorted(set(given.models) - set(CANDIDATES)):
        parser.error(f"no such model: {', '.join(unknown)}; there are {', '.join(CANDIDATES)}")
    try:
        return given, Record(given.json)
    except RecordError as error:
        parser.error(f"--json: {error}")


def import_sglang() -> None:
    """Once for all forks: it takes 13 seconds of CPU, the models' modules half as long again."""
    for module in ("entrypoints.engine", "managers.scheduler", "models.registry"):
        import_module(f"sglang.srt.{module}")

    assert len(os.listdir("/proc/self/task")) == 1, "a thread, of which a fork would not know"


def main(arguments: list[str]) -> int:
    given, record = parse(arguments)
    names = [name for name in given.models or CANDIDATES if given.again or not record.holds(name)]
    console = Console(stderr=True)
    wrong = []
    import_sglang()
    # Drawn by hand: a thread that draws would be one that forks do not have.
    with Progress(*COLUMNS, console=console, auto_refresh=False) as progress:
        task = progress.add_task("", total=len(names))
        for name in names:
            progress.update(task, description=name, refresh=True)
            verdict = attempt(CANDIDATES[name], given.seed)
            record.put(name, given.seed, verdict)
            wrong += [] if is_right(verdict) else [name]
            progress.console.print(f"{name}: {in_words(verdict)}", soft_wrap=True, highlight=False)
            progress.advance(task)
    if wrong:
        console.print(f"not right: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
