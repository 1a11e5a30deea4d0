"""What pruning costs in quality: real weights, real texts, the real server, and what other methods keep.

    python -m benchmarks.quality [PART ...] [--quick] [--model PATH] [--data DIR] [--json FILE]
    python -m benchmarks.quality ablation [needles|prose|multi_news|windows|small|poolings|passcodes ...]
                                          [--data DIR]

needles    facts in prose: the first turn on the server, and by all methods (1K and 2K tokens)
turns      a later question: on the server, over pruned KV, and of a document pruned before any question
needles/1024, turns/2048    one length of them, for several runs beside each other on a GPU
prose      how far the distribution of the next tokens moves (KL)
rounded    fp8 and 4-bit KV beside pruning at the same bytes
synthetic  passcodes of the 7M model, 2K to 16K tokens
longbench/TASK, ruler/LENGTH/TASK, minilongbench/TASK    from DIR, else by the datasets package

A run goes on where the last one stopped: what FILE holds is not measured again. Files of several runs are
put together by `python -m benchmarks.quality.merge`.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.harness.provenance import ROOT, fault_of
from benchmarks.harness.server import ServerError
from benchmarks.quality import ablation, comparisons, plots, smollm2, tables, transcripts
from benchmarks.quality.longtexts import NoText
from benchmarks.quality.model import BadModel
from benchmarks.quality.plan import NoPart, parts
from benchmarks.quality.record import Record, RecordError
from benchmarks.quality.session import Part, Session
from laprox_tools.needle import MODEL_PATH

ABLATION = "ablation"


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help="some of them; default: needles, turns, prose, rounded, synthetic",
    )
    parser.add_argument("--quick", action="store_true", help="few documents: 15 minutes on 2 cores")
    parser.add_argument(
        "--model", type=Path, metavar="PATH", help="a Hugging Face model; default: SmolLM2-135M"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="texts that are not in the repository")
    parser.add_argument("--prompts", type=int, metavar="N", help="documents of each part")
    parser.add_argument("--minutes", type=float, metavar="M", help="begin no document after this time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: in build/ or benchmarks/results/")
    given = parser.parse_args(arguments)
    given.ablation = given.parts[:1] == [ABLATION]
    if given.ablation:
        del given.parts[0]
    if ABLATION in given.parts:
        parser.error("ablation is another run: it comes first, then those of its tasks that are wanted")
    if given.model is not None and not (given.model / "config.json").is_file():
        parser.error(f"--model: {given.model} has no config.json: give the folder of a Hugging Face model")
    if given.data is not None and not given.data.is_dir():
        parser.error(f"--data: {given.data} is no folder")
    if given.json is None:
        folder = ROOT / "build" if given.quick else ROOT / "benchmarks" / "results"
        folder.mkdir(exist_ok=True)
        given.json = folder / f"quality{'-ablation' * given.ablation}.json"
    if fault := fault_of(given.json):
        parser.error(f"--json: {fault}")
    return given


def run(part: Part, served: dict[str, Any], record: Record, deadline: float) -> None:
    """Measures the documents of a part that the record does not hold yet."""
    known = record.part(part.name, part.session.name, served)
    bar = part.session.progress.add_task(part.name, total=part.prompts, completed=known["prompts"])
    for index in range(known["prompts"], part.prompts):
        if time.monotonic() > deadline:
            return
        started = time.monotonic()
        measured = part.measure(index)
        known["seconds"] = round(known.get("seconds", 0) + time.monotonic() - started, 1)
        record.add(known, part.task, part.length, part.graded, measured)
        part.session.progress.advance(bar)


def measure(given: argparse.Namespace, record: Record, progress: Progress) -> None:
    deadline = time.monotonic() + 60 * given.minutes if given.minutes else float("inf")
    path = given.model or smollm2.fetch(progress)
    name = given.model.name if given.model else smollm2.NAME
    size = (given.quick, given.prompts, given.data, progress)
    with Session(path, name, *size) as session, Session(MODEL_PATH, "needle-7m", *size) as needle7m:
        if given.ablation:
            chosen = ablation.parts(given.parts, session, needle7m)
        else:
            chosen = parts(given.parts, session, needle7m)
        try:
            for part in chosen:
                run(part, {} if given.ablation else part.session.method, record, deadline)
        finally:
            record.flush()


def show(record: Record, given: argparse.Namespace) -> None:
    console = Console()
    for part in record.parts:
        for document in part["shown"]:
            transcripts.show(document, console)
    shown = tables.tables(record.rows)
    if given.ablation:
        shown += comparisons.against(record.rows, ablation.BASE)
    else:
        shown += [*comparisons.all_lengths(record.rows), *comparisons.later_turns(record.rows)]
    for table in shown:
        console.print(table)
    for part in record.parts:
        if part["replay"]:
            console.print(tables.replay(part), markup=False)
    written: list[Path] = [given.json]
    try:
        written += plots.draw(record.content, given.json)
    except ImportError:
        console.print("no pictures: matplotlib is not installed")
    console.print(f"written: {', '.join(map(str, written))}", markup=False)


def main(arguments: list[str]) -> int:
    given = parse(arguments)
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        record = Record(given.json, given.quick)
        with Progress(*columns, console=Console(stderr=True)) as progress:
            measure(given, record, progress)
    except (BadModel, RecordError, NoText, NoPart, ServerError, smollm2.Unavailable) as error:
        print(f"quality: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("quality: stopped; the same command goes on", file=sys.stderr)
        return 130
    show(record, given)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
