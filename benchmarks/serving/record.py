"""The results file: rows of parts that ran at different times."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from benchmarks.harness.files import RecordError, begun, replacing
from benchmarks.harness.provenance import made_by, same_origin
from benchmarks.serving.figures import ratio
from benchmarks.serving.kinds import (
    FP8,
    LAPROX,
    LAPROX_FP8,
    LAPROX_HOST,
    SERVERS,
    STOCK,
    STOCK_HOST,
)
from benchmarks.serving.tally import Tally

# Key of a row's LaProx / other, by the other.
RATIOS = {STOCK: "ratio", FP8: "ratio_fp8"}
# The same of LaProx with fp8 KV, and with a host tier.
FP8_RATIOS = {FP8: "fp8_ratio", LAPROX: "fp8_ratio_laprox"}
HOST_RATIOS = {STOCK_HOST: "host_ratio", LAPROX: "host_ratio_laprox"}
# A row without a backend of its own ran on what each server takes by default. Rows of before there was a
# choice say nothing, and ran on this one.
DEFAULT, BEFORE = "default", "flashinfer"


# What each part of a point keeps of its own figures: how far repeats lie apart.
OF_A_PART = ("seconds", "output_tok_s", "ttft_p50", "ttft_p95", "itl_p50", "itl_p99", "interactivity_p90")


class Named(Protocol):
    """A row: a workload, or a load point, whose ``load`` says which curve it is of and where on it."""

    @property
    def name(self) -> str: ...
    @property
    def what(self) -> str: ...


class Record:
    """Rows by workload and backend; every change is written at once, so that a kill loses nothing.

    Attributes:
        content: what the file holds.
        saved: something was measured and written.
    """

    def __init__(
        self, path: Path | None, quick: bool, order: Iterable[str] = (), backend: str | None = None
    ) -> None:
        """
        Args:
            order: names of workloads, as they are to stand in the file.
            backend: that the servers were told to take.

        Raises:
            RecordError: the file is not of this benchmark, or of another chip or size.
        """
        self.saved = False
        self._path = path
        self._order = list(order)
        self._backend = backend or DEFAULT
        self.content = begun(path, quick, read, servers={}, rows=[])

    def row(self, workload: str) -> dict[str, Any] | None:
        """Of the backend that is measured."""
        key = workload, self._backend
        return next((row for row in self.content["rows"] if (row["workload"], backend_key(row)) == key), None)

    def figures(self, workload: str, server: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = (self.row(workload) or {}).get(server)
        return found

    def holds(self, workload: str, server: str, part: int = 0) -> bool:
        """Whether this commit with these versions has measured it, or a part of it, already."""
        side = self.figures(workload, server) or {}
        parts = {"0": side} if "tally" not in side else side["parts"]
        return "failed" not in side and same_origin(parts.get(str(part), {}))

    def put(self, row: Named, server: str, figures: dict[str, Any], backend: str) -> None:
        """Replaces what a workload measured on a server.

        Args:
            backend: attention backend that the server resolved to.
        """
        known = self._row_of(row)
        known[server] = figures | {"attention_backend": backend, **made_by()}
        compare(known)
        self.save()

    def put_part(self, row: Named, server: str, part: int, tally: Tally, backend: str) -> dict[str, Any]:
        """Adds a part to a point of this commit, or replaces that of another; returns its figures."""
        side = self.figures(row.name, server) or {}
        old = same_origin(side) and "tally" in side and str(part) not in side["parts"]
        own = tally.figures()
        told = {key: own[key] for key in OF_A_PART} | made_by()
        if old:
            tally.add(Tally.from_json(side["tally"]))
        parts = (side["parts"] if old else {}) | {str(part): told}
        self.put(row, server, tally.figures() | {"parts": parts, "tally": tally.to_json()}, backend)
        return self.figures(row.name, server) or {}

    def put_failure(self, row: Named, server: str, error: str, backend: str) -> None:
        """A point that failed stays in, unless this commit has figures of it."""
        if not self.holds(row.name, server) and "tally" not in (self.figures(row.name, server) or {}):
            self.put(row, server, {"failed": error.splitlines()[0]}, backend)

    def _row_of(self, row: Named) -> dict[str, Any]:
        known = self.row(row.name)
        if known is None:
            known = {"workload": row.name, "what": row.what, "backend": self._backend}
            known |= dict.fromkeys((STOCK, LAPROX))
            self.content["rows"].append(known)
            sort(self.content["rows"], self._order)
        known["what"] = row.what
        if (load := getattr(row, "load", None)) is not None:
            known["load"] = load
        return known

    def put_server(self, pool: str, server: str, facts: dict[str, Any]) -> None:
        self.content["servers"].setdefault(pool, {})[server] = facts

    def save(self) -> None:
        if self._path is None:
            return
        write(self._path, self.content)
        self.saved = True


def compare(row: dict[str, Any]) -> None:
    """Writes what LaProx is beside the others into a row."""
    pairs = ((LAPROX, RATIOS), (LAPROX_FP8, FP8_RATIOS), (LAPROX_HOST, HOST_RATIOS))
    for ours, keys in ((row.get(name), keys) for name, keys in pairs):
        for other, key in keys.items():
            row.pop(key, None)
            if ours and row.get(other) and sglang_of(row[other]) == sglang_of(ours):
                row[key] = ratio(row[other], ours)


def sglang_of(side: dict[str, Any]) -> Any:
    return side.get("versions", {}).get("sglang")


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
