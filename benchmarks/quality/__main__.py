"""What pruning costs in quality: real weights, real texts, the real server, and what other methods keep.

    python -m benchmarks.quality [PART ...] [--quick] [--model MODEL] [--data DIR] [--json FILE]
    python -m benchmarks.quality [PART ...] --settings SET  # other settings than the defaults, simulated
    python -m benchmarks.quality --merge FILE.json ... --json FILE  # one file of several runs'

PART is a task, of all its lengths or of one, in the first turn or read otherwise:

needles, needles/1024    facts in prose: the first turn on the server, and by all methods
turns:needles            a later question: on the server, over pruned KV, pruned before any question
rounded:needles          fp8 and 4-bit KV beside pruning at the same bytes
fp8:needles              a second server with fp8 KV beside the first, whole and with views
multikey multivalue multiquery variables words questions    what RULER asks, 4K to 16K tokens
code, agents             a function of a module; any of twelve pages of JSON, 8K to 28K tokens
prose                    how far the distribution of the next tokens moves (KL)
passcodes                passcodes of the 7M model, 2K to 16K tokens
longbench/multi_news, minilongbench/TASK/LENGTH, ruler/LENGTH/TASK    from DIR

A run goes on where the last one stopped: what FILE holds is not measured again.
"""

import argparse
import re
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.harness.arguments import parser as parser_of
from benchmarks.harness.provenance import ROOT, fault_of
from benchmarks.harness.server import ServerError
from benchmarks.quality import smollm2, suite
from benchmarks.quality.methods import SETTINGS
from benchmarks.quality.methods.reader import BadModel
from benchmarks.quality.record import charts, report, transcript
from benchmarks.quality.record.results_file import Results, ResultsError
from benchmarks.quality.subject import Subject
from benchmarks.quality.tasks.task import TaskError
from laprox_tools.needle import MODEL_PATH

COLUMNS = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())

LEAST_WIDTH = 110
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = parser_of("quality", __doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: all that need no network")
    parser.add_argument("--quick", action="store_true", help="few documents: 15 minutes on 2 cores")
    parser.add_argument(
        "--model", metavar="MODEL", help="folder or hub name of a Hugging Face model; default: SmolLM2-135M"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="texts that are not in the repository")
    parser.add_argument("--settings", choices=SETTINGS, help="methods that are compared, without a server")
    parser.add_argument("--prompts", type=int, metavar="N", help="documents of each part")
    parser.add_argument("--minutes", type=float, metavar="M", help="begin no document after this time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: in build/ or benchmarks/results/")
    parser.add_argument("--merge", type=Path, nargs="+", default=[], metavar="FILE.json")
    given = parser.parse_args(arguments)
    if given.model and not (HUB_NAME.fullmatch(given.model) or Path(given.model, "config.json").is_file()):
        parser.error(f"--model: {given.model} has no config.json: give a model's folder, or its hub name")
    if given.data is not None and not given.data.is_dir():
        parser.error(f"--data: {given.data} is no folder")
    if given.merge and (given.json is None or given.json.exists()):
        parser.error("--merge: give --json FILE, a name that is not there yet")
    if missing := [path for path in given.merge if not path.is_file()]:
        parser.error(f"--merge: {missing[0]} is not there")
    if given.json is None:
        folder = ROOT / "build" if given.quick else ROOT / "benchmarks" / "results"
        folder.mkdir(exist_ok=True)
        given.json = folder / f"quality{'-ablation' if given.settings else ''}.json"
    if fault := fault_of(given.json):
        parser.error(f"--json: {fault}")
    return given


def measured(given: argparse.Namespace) -> Results:
    """What the file holds, and what it does not hold yet of what is asked for."""
    results = Results(given.json, given.quick)
    size = suite.Size(given.quick, given.prompts, given.settings, given.data)
    deadline = time.monotonic() + 60 * given.minutes if given.minutes else float("inf")
    with Progress(*COLUMNS, console=Console(stderr=True)) as progress:
        path, name = given.model or str(smollm2.fetch(progress)), smollm2.NAME
        if given.model:
            # Tables call a model by the name of its folder.
            name = Path(path).name if Path(path).is_dir() else path
        needle7m = Subject(str(MODEL_PATH), "needle-7m", progress)
        with Subject(path, name, progress) as subject, needle7m:
            try:
                for part in suite.parts(given.parts, size, subject, needle7m):
                    suite.measure(part, size, results, progress, deadline)
            finally:
                results.flush()
    return results


def merged(given: argparse.Namespace) -> Results:
    """One file of several, of which each measured parts of its own."""
    sources = [Results(path, None) for path in given.merge]
    results = Results(given.json, sources[0].quick)
    for source in sources:
        results.merge(source)
    results.save()
    return results


def show(results: Results) -> None:
    console = Console()
    # In a narrower one tables lose the ends of their figures.
    console.width = max(console.width, LEAST_WIDTH)
    for part in results.parts:
        for document in part["shown"]:
            transcript.show(document, console)
    console.print(Markdown(report.of_run(results)))
    written = [results.path]
    try:
        written += charts.draw(results)
    except ImportError:
        console.print("no pictures: matplotlib is not installed")
    console.print(f"written: {', '.join(map(str, written))}", markup=False)


def main(arguments: list[str]) -> int:
    given = parse(arguments)
    try:
        results = merged(given) if given.merge else measured(given)
    except (BadModel, ResultsError, TaskError, ServerError, smollm2.Unavailable) as error:
        print(f"quality: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("quality: stopped; the same command goes on", file=sys.stderr)
        return 130
    show(results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
