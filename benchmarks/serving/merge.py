"""Makes one results file of several parts.

    python -m benchmarks.serving.merge PART.json [PART.json ...] --json OUT.json

Of a server that several parts measured, the last one counts. Parts of another chip, or of one row by another
SGLang, are refused. The pictures are drawn beside OUT.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness.provenance import fault_of
from benchmarks.serving import plots
from benchmarks.serving.record import (
    RATIOS,
    RecordError,
    backend_key,
    compare,
    read,
    sglang_of,
    sort,
    standing,
    write,
)
from benchmarks.serving.workload import SERVERS, STOCK
from benchmarks.serving.workloads import workloads


def merge(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """One file's content of several.

    Raises:
        RecordError: they do not go together.
    """
    for key, what in (("chip", "chips"), ("quick", "sizes")):
        if len(found := {str(part[key]) for part in parts}) > 1:
            raise RecordError(f"parts of several {what} do not go together: {', '.join(sorted(found))}")
    merged: dict[str, Any] = {**parts[-1], "servers": {}, "rows": []}
    table = workloads(merged["quick"])
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for part in parts:
        for pool, servers in part["servers"].items():
            merged["servers"].setdefault(pool, {}).update(servers)
        for row in part["rows"]:
            known = rows.setdefault((row["workload"], backend_key(row)), row)
            known |= {key: value for key, value in row.items() if value is not None}
    for (name, _), row in rows.items():
        workload = table.get(name)
        source = rows.get((workload.stock_of, backend_key(row))) if workload is not None else None
        if workload is not None and source is not None and source.get(STOCK):
            row[STOCK] = standing(source[STOCK], workload)
        if len(found := {str(sglang_of(row[server])) for server in SERVERS if row.get(server)}) > 1:
            raise RecordError(f"{name} was measured on several SGLangs: {', '.join(sorted(found))}")
        for key in RATIOS.values():
            row.pop(key, None)
        compare(row)
        merged["rows"].append(row)
    sort(merged["rows"], list(table))
    return merged


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving.merge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="+", type=Path, metavar="PART.json")
    parser.add_argument("--json", required=True, type=Path, metavar="OUT.json")
    given = parser.parse_args(arguments)
    try:
        if fault := fault_of(given.json):
            raise RecordError(fault)
        merged = merge([read(path) for path in given.parts])
    except RecordError as error:
        print(f"merge: {error}", file=sys.stderr)
        return 2
    write(given.json, merged)
    print(plots.written(merged, given.json))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
