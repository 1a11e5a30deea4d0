"""Makes one results file of several parts.

    python -m benchmarks.serving.merge PART.json [PART.json ...] --json OUT.json

Of a server that several parts measured, the last one counts; parts of one load point, of one commit, are
added up. Parts of another chip, or of one row by another SGLang, are refused. Pictures are drawn beside OUT.
"""

import sys
from pathlib import Path
from typing import Any

from benchmarks.harness.arguments import parser as parser_of
from benchmarks.harness.files import RecordError
from benchmarks.harness.provenance import fault_of
from benchmarks.serving import plots
from benchmarks.serving.kinds import SERVERS
from benchmarks.serving.load.workloads import workloads
from benchmarks.serving.record import backend_key, compare, read, sglang_of, sort, write
from benchmarks.serving.tally import Tally


def merge(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """One file's content of several.

    Raises:
        RecordError: they do not go together.
    """
    for key, what in (("chip", "chips"), ("quick", "sizes")):
        if len(found := {str(part[key]) for part in parts}) > 1:
            raise RecordError(f"parts of several {what} do not go together: {', '.join(sorted(found))}")
    merged: dict[str, Any] = {**parts[-1], "servers": {}, "rows": []}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for part in parts:
        for pool, servers in part["servers"].items():
            merged["servers"].setdefault(pool, {}).update(servers)
        for row in part["rows"]:
            known = rows.setdefault((row["workload"], backend_key(row)), row)
            if known is not row:
                sides = {server: joined(known.get(server), row.get(server)) for server in SERVERS}
                known |= row | {server: side for server, side in sides.items() if side or server in known}
                compare(known)
    for (name, _), row in rows.items():
        if len(found := {str(sglang_of(row[server])) for server in SERVERS if row.get(server)}) > 1:
            raise RecordError(f"{name} was measured on several SGLangs: {', '.join(sorted(found))}")
    merged["rows"] = list(rows.values())
    sort(merged["rows"], list(workloads(merged["quick"])))
    return merged


def joined(old: dict[str, Any] | None, new: dict[str, Any] | None) -> dict[str, Any] | None:
    """The later figures; of a load point all parts of one commit, added up."""
    if not old or not new:
        return new or old
    if "failed" in new and "failed" not in old:
        return old
    same = all(old.get(key) == new.get(key) for key in ("commit", "dirty", "versions"))
    if not same or "tally" not in old or "tally" not in new or set(old["parts"]) & set(new["parts"]):
        return new
    tally = Tally.from_json(old["tally"])
    tally.add(Tally.from_json(new["tally"]))
    return new | tally.figures() | {"parts": old["parts"] | new["parts"], "tally": tally.to_json()}


def main(arguments: list[str]) -> int:
    parser = parser_of("serving.merge", __doc__)
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
