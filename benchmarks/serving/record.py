"""The results file: rows of parts that ran at different times, merged; and the table."""

import json
import re
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.harness.provenance import REVISION, chip, command, fault_of, today, versions
from benchmarks.serving.figures import ratio
from benchmarks.serving.workloads import LAPROX, STOCK, TARGETS, Workload

NOT_MEASURED = "fa3, stock's default attention backend on Hopper"
# Whose figures of stock stand for a workload that only LaProx runs, and which of them: it sends fewer
# requests, so nothing else compares.
STANDS_FOR = {"b-itl": "b", "a-itl": "a"}
STANDING = ("peak_concurrency", "itl_p50", "itl_p99", "date")


class RecordError(RuntimeError):
    """A results file that cannot be added to; the message is one line."""


class Record:
    """Rows by workload; every change is written at once, so that a kill loses nothing.

    Attributes:
        content: what the file holds.
        saved: something was measured and written.
    """

    def __init__(self, path: Path | None, quick: bool, workloads: dict[str, Workload]) -> None:
        """
        Raises:
            RecordError: the file is not of this benchmark, or of another chip or size.
        """
        self.saved = False
        self._path = path
        self._workloads = workloads
        self.content: dict[str, Any] = {"chip": chip(), "quick": quick, "servers": {}, "rows": []}
        if fault := fault_of(path):
            raise RecordError(fault)
        if path is not None and path.exists():
            try:
                old = json.loads(path.read_text())
                same = all(old[key] == self.content[key] for key in ("chip", "quick"))
                self.content |= {"servers": old["servers"], "rows": old["rows"]}
            except (ValueError, KeyError, TypeError) as error:
                raise RecordError(f"{path} does not hold results of this benchmark ({error!r})") from None
            if not same:
                raise RecordError(
                    f"{path} holds results of {old['chip']}{', --quick' if old['quick'] else ''}: "
                    "give another file"
                )

    @property
    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.content["rows"]
        return rows

    def row(self, workload: str) -> dict[str, Any] | None:
        return next((row for row in self.rows if row["workload"] == workload), None)

    def figures(self, workload: str, server: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = (self.row(workload) or {}).get(server)
        return found

    def put(self, workload: Workload, server: str, figures: dict[str, Any], backend: str) -> None:
        """Replaces what a workload measured on a server."""
        row = self.row(workload.name)
        if row is None:
            row = {"workload": workload.name, "what": workload.what, STOCK: None, LAPROX: None}
            self.rows.append(row)
            order = list(self._workloads)
            self.rows.sort(key=lambda row: order.index(row["workload"]) if row["workload"] in order else 99)
        row |= {"attention_backend": backend, "not_measured": NOT_MEASURED}
        row[server] = figures | {"date": today(), "command": command(), **REVISION}
        for reader in self.rows:
            source = STANDS_FOR.get(reader["workload"])
            if source is not None and (stock := self.figures(source, STOCK)) is not None:
                reader[STOCK] = {key: stock[key] for key in STANDING if key in stock}
                reader[STOCK]["taken_from"] = source
            if reader[STOCK] and reader[LAPROX]:
                reader["ratio"] = ratio(reader[STOCK], reader[LAPROX])
        self.save()

    def put_server(self, pool: str, server: str, facts: dict[str, Any]) -> None:
        self.content["servers"].setdefault(pool, {})[server] = facts

    def save(self) -> None:
        if self._path is None:
            return
        record = {
            "chip": self.content["chip"],
            "versions": versions(),
            "date": today(),
            **REVISION,
            **{key: self.content[key] for key in ("quick", "servers", "rows")},
        }
        # A kill in the middle of a write must not lose the rows of other runs.
        draft = self._path.with_suffix(".tmp")
        draft.write_text(dumps(record))
        draft.replace(self._path)
        self.saved = True


def dumps(record: dict[str, Any]) -> str:
    """JSON with a line for every innermost list, so that a series does not fill pages."""
    text = json.dumps(record, indent=1, ensure_ascii=False)
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def table(record: Record, names: list[str]) -> Table:
    shown = (
        *("output_tok_s", "requests_s", "peak_concurrency", "ttft_p50", "itl_p50", "itl_p99"),
        *("slots_mean", "pruned_share", "prefix_hit_tokens", "laprox_ms", "prefill_busy_ms"),
        *("first_decode_ms", "to_decode_ms", "idle_ms", "syncs", "copies_to_host"),
    )
    result = Table(title=f"{record.content['chip']}; not measured: {NOT_MEASURED}")
    for column in ("workload", "figure", STOCK, LAPROX, "ratio", "target", "met"):
        result.add_column(column, justify="left" if column in ("workload", "figure") else "right")
    targets = {} if record.content["quick"] else {(t.workload, t.figure): t for t in TARGETS}
    for row in (row for row in record.rows if row["workload"] in names):
        stock, laprox = row[STOCK] or {}, row[LAPROX] or {}
        # A zero on both sides says nothing, but for the share of pruned requests.
        told = [key for key in shown if key == "pruned_share" or stock.get(key) or laprox.get(key)]
        for number, figure in enumerate(key for key in told if key in stock or key in laprox):
            quotient = row.get("ratio", {}).get(figure)
            target = targets.get((row["workload"], figure))
            met = "" if target is None or quotient is None else "yes" if target.met(quotient) else "NO"
            result.add_row(
                row["workload"] if number == 0 else "",
                figure,
                *(show(side.get(figure)) for side in (stock, laprox)),
                show(quotient),
                "" if target is None else str(target),
                met,
            )
        result.add_section()
    return result


def show(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) or value >= 1000 else f"{value:.3f}"
