"""The results file: rows of parts that ran at different times."""

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.harness.files import replacing
from benchmarks.harness.provenance import chip, fault_of, made_by, same_origin
from benchmarks.serving.figures import added, ratio
from benchmarks.serving.workload import FP8, LAPROX, SERVERS, STOCK, Workload

# What fewer requests than stock had do not change.
STANDING = ("peak_concurrency", "itl_p50", "itl_p99")
# Key of a row's LaProx / other, by the other.
RATIOS = {STOCK: "ratio", FP8: "ratio_fp8"}
# A row without a backend of its own ran on what each server takes by default. Rows of before there was a
# choice say nothing, and ran on this one.
DEFAULT, BEFORE = "default", "flashinfer"


class RecordError(RuntimeError):
    """A results file that cannot be added to; the message is one line."""


class Record:
    """Rows by workload and backend; every change is written at once, so that a kill loses nothing.

    Attributes:
        content: what the file holds.
        saved: something was measured and written.
    """

    def __init__(
        self, path: Path | None, quick: bool, workloads: dict[str, Workload], backend: str | None = None
    ) -> None:
        """
        Args:
            backend: that stock and LaProx were told to take.

        Raises:
            RecordError: the file is not of this benchmark, or of another chip or size.
        """
        self.saved = False
        self._path = path
        self._workloads = workloads
        self._backend = backend or DEFAULT
        self.content: dict[str, Any] = {"chip": chip(), "quick": quick, "servers": {}, "rows": []}
        if fault := fault_of(path):
            raise RecordError(fault)
        if path is not None and path.exists():
            old = read(path)
            if any(old[key] != self.content[key] for key in ("chip", "quick")):
                raise RecordError(
                    f"{path} holds results of {old['chip']}{', --quick' if old['quick'] else ''}: "
                    "give another file"
                )
            self.content |= {"servers": old["servers"], "rows": old["rows"]}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of the backend that is measured."""
        return [row for row in self.content["rows"] if backend_key(row) == self._backend]

    def row(self, workload: str) -> dict[str, Any] | None:
        return next((row for row in self.rows if row["workload"] == workload), None)

    def figures(self, workload: str, server: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = (self.row(workload) or {}).get(server)
        return found

    def holds(self, workload: str, server: str) -> bool:
        """Whether this commit with these versions has measured it already."""
        return same_origin(self.figures(workload, server) or {})

    def put(self, workload: Workload, server: str, figures: dict[str, Any], backend: str) -> None:
        """Replaces what a workload measured on a server.

        Args:
            backend: attention backend that the server resolved to.
        """
        row = self.row(workload.name)
        if row is None:
            row = {"workload": workload.name, "what": workload.what, "backend": self._backend}
            row |= dict.fromkeys(SERVERS[:2])
            self.content["rows"].append(row)
            sort(self.content["rows"], list(self._workloads))
        row["what"] = workload.what
        row[server] = figures | {"attention_backend": backend, **made_by()}
        for reader in self.rows:
            reading = self._workloads.get(reader["workload"])
            if reader is row or (reading is not None and reading.stock_of == workload.name):
                self._compare(reader, reading)
        self.save()

    def _compare(self, row: dict[str, Any], workload: Workload | None) -> None:
        if workload is not None and workload.stock_of:
            stock = self.figures(workload.stock_of, STOCK)
            if stock is not None:
                row[STOCK] = standing(stock, workload)
        compare(row)

    def put_server(self, pool: str, server: str, facts: dict[str, Any]) -> None:
        self.content["servers"].setdefault(pool, {})[server] = facts

    def save(self) -> None:
        if self._path is None:
            return
        write(self._path, self.content)
        self.saved = True


def standing(stock: dict[str, Any], workload: Workload) -> dict[str, Any]:
    """Figures of stock as they stand in another workload, which sends fewer requests or the same ones."""
    dropped = {"slots_over_time", "rounds"}
    kept = {key: value for key, value in stock.items() if key not in dropped}
    if workload.at_peak:
        about = {"attention_backend", *made_by()}
        kept = {key: value for key, value in kept.items() if key in STANDING or key in about}
    return kept | {"taken_from": workload.stock_of}


def compare(row: dict[str, Any]) -> None:
    """Writes what LaProx is beside the others into a row."""
    laprox = row.get(LAPROX)
    for other, key in RATIOS.items():
        if laprox and row.get(other) and sglang_of(row[other]) == sglang_of(laprox):
            row[key] = ratio(row[other], laprox)
            if other == STOCK and (difference := added(row[other], laprox)):
                row["added"] = difference


def sglang_of(side: dict[str, Any]) -> str | None:
    version: str | None = side.get("versions", {}).get("sglang")
    return version


def backend_key(row: dict[str, Any]) -> str:
    return str(row.get("backend", BEFORE))


def by_workload(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The row of every workload that counts: that of the default backends, where there is one."""
    ranked = sorted(rows, key=lambda row: backend_key(row) == DEFAULT)
    return {row["workload"]: row for row in ranked}


def backends(row: dict[str, Any]) -> str:
    """Which attention backend each server of a row ran on."""
    names = {server: row[server]["attention_backend"] for server in SERVERS if row.get(server)}
    if len(set(names.values())) == 1:
        return f"{next(iter(names.values()))} on all"
    return ", ".join(f"{server} {name}" for server, name in names.items())


def sort(rows: list[dict[str, Any]], order: list[str]) -> None:
    """By workload, what nobody knows last; the default backend first."""

    def place(row: dict[str, Any]) -> tuple[int, bool, str]:
        name, backend = row["workload"], backend_key(row)
        return order.index(name) if name in order else len(order), backend != DEFAULT, backend

    rows.sort(key=place)


def read(path: Path) -> dict[str, Any]:
    """Chip, size, servers and rows of a results file; each part of a row says what it was measured with.

    Raises:
        RecordError: it is not of this benchmark.
    """
    try:
        content = json.loads(path.read_text())
        for row in content["rows"]:
            for side in (row[server] for server in SERVERS if row.get(server)):
                # Files of before each part said so have it at their head, or at that of the row.
                side.setdefault("versions", content.get("versions", {}))
                side.setdefault("attention_backend", row.get("attention_backend"))
        return {key: content[key] for key in ("chip", "quick", "servers", "rows")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} does not hold results of this benchmark ({error!r})") from None


def write(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as draft:
        draft.write_text(dumps(content))


def dumps(content: dict[str, Any]) -> str:
    """JSON with a line for every innermost list and record, so that a series does not fill pages."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    for left, right in (("\\[", "\\]"), ("{", "}")):
        text = re.sub(
            rf"({left})\s+([^\[\]{{}}]*?)\s+({right})",
            lambda found: f"{found[1]}{' '.join(found[2].split())}{found[3]}",
            text,
        )
    return text + "\n"
