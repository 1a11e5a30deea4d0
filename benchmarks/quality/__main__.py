"""What pruning costs in quality, with real weights and real texts, through the real server."""

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.harness.provenance import fault_of
from benchmarks.quality import ablation, smollm2
from benchmarks.quality.longtexts import NoText
from benchmarks.quality.record import Record, RecordError
from benchmarks.quality.session import Part, Session


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model", type=Path, metavar="PATH")
    parser.add_argument("--data", type=Path, metavar="DIR")
    parser.add_argument("--prompts", type=int, metavar="N")
    parser.add_argument("--minutes", type=float, metavar="M")
    parser.add_argument("--json", type=Path, metavar="FILE", required=True)
    given = parser.parse_args(arguments)
    if fault := fault_of(given.json):
        parser.error(f"--json: {fault}")
    return given


def run(part: Part, session: Session, record: Record, deadline: float) -> None:
    """Measures the documents of a part that the record does not hold yet."""
    known = record.part(part.name, session.name)
    bar = session.progress.add_task(part.name, total=part.prompts, completed=known["prompts"])
    for index in range(known["prompts"], part.prompts):
        if time.monotonic() > deadline:
            return
        started = time.monotonic()
        record.add(known, part.task, part.length, part.graded, part.measure(index))
        known["seconds"] = round(known.get("seconds", 0) + time.monotonic() - started, 1)
        session.progress.advance(bar)


def main(arguments: list[str]) -> int:
    given = parse(arguments)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    deadline = time.monotonic() + 60 * given.minutes if given.minutes else float("inf")
    with Progress(*columns, console=console) as progress:
        try:
            record = Record(given.json, given.quick)
            path = given.model or smollm2.fetch(progress)
            name = given.model.name if given.model else smollm2.NAME
            session = Session(path, name, given.quick, given.prompts, given.data, progress)
            for part in ablation.parts(session):
                run(part, session, record, deadline)
        except (RecordError, NoText, smollm2.Unavailable) as error:
            print(f"quality: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("quality: stopped; the same command goes on", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
