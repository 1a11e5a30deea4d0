"""Makes one results file of several runs, of which each measured parts of its own.

    python -m benchmarks.quality.merge FILE.json [FILE.json ...] --json OUT.json

A part that two files have is refused, for its documents may be the same ones. Pictures are drawn beside OUT.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from benchmarks.harness.provenance import fault_of
from benchmarks.quality import plots
from benchmarks.quality.record import Record, RecordError


def merge(sources: Sequence[Record], out: Record) -> None:
    """Adds everything that ``sources`` hold to ``out``.

    Raises:
        RecordError: two of them hold the same part, or differ in size or in what they were served with.
    """
    for source in sources:
        if source.quick != out.quick:
            raise RecordError(f"{source.path} is of another size than a file before it (--quick)")
        for part, other in product(source.parts, out.parts):
            if part["model"] != other["model"]:
                continue
            if part["name"] == other["name"]:
                raise RecordError(f"{source.path} holds {part['name']!r}, and so does a file before it")
            if part["served"] != other["served"]:
                raise RecordError(f"{source.path} was served with other options than a file before it")
        out.take(source)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.merge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    parser.add_argument("--json", required=True, type=Path, metavar="OUT.json")
    given = parser.parse_args(arguments)
    try:
        if fault := fault_of(given.json):
            raise RecordError(fault)
        if given.json.exists():
            raise RecordError(f"{given.json} is there already: give another name, or delete it")
        if missing := [path for path in given.files if not path.is_file()]:
            raise RecordError(f"{missing[0]} is not there")
        sources = [Record(path, None) for path in given.files]
        out = Record(given.json, sources[0].quick)
        merge(sources, out)
    except RecordError as error:
        print(f"merge: {error}", file=sys.stderr)
        return 2
    out.save()
    written = [given.json]
    try:
        written += plots.draw(out.content, given.json)
    except ImportError:
        print("no pictures: matplotlib is not installed")
    print(f"written: {', '.join(map(str, written))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
