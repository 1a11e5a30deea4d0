"""The results file of the checks: rows of several runs, and what each check was measured with."""

import json
from pathlib import Path
from typing import Any

from benchmarks.checks.rows import Row
from benchmarks.harness.files import RecordError, begun, replacing
from benchmarks.harness.provenance import made_by, same_origin


class Record:
    """Rows by check; each check is written as soon as all its servers are done."""

    def __init__(self, path: Path | None, quick: bool) -> None:
        """
        Raises:
            RecordError: the file is not of the checks, or of another chip or size.
        """
        self._path = path
        self._content = begun(path, quick, read, parts={}, rows=[], details={})

    def holds(self, check: str) -> bool:
        """Whether this commit with these versions has been checked already."""
        return same_origin(self._content["parts"].get(check, {}))

    def put(self, check: str, rows: list[Row], details: dict[str, Any], backends: dict[str, str]) -> None:
        """Replaces a check.

        Args:
            details: more than rows, by name.
            backends: attention backend that each server resolved to.
        """
        kept = [row for row in self._content["rows"] if row["check"] != check]
        self._content["rows"] = kept + [row.to_dict() for row in rows]
        self._content["parts"][check] = {**made_by(), "attention_backend": backends}
        self._content["details"] |= details
        if self._path is not None:
            with replacing(self._path) as draft:
                draft.write_text(json.dumps(self._content, indent=1, ensure_ascii=False) + "\n")


def read(path: Path) -> dict[str, Any]:
    """
    Raises:
        RecordError: it is no results file of the checks.
    """
    try:
        content = json.loads(path.read_text())
        return {key: content[key] for key in ("chip", "quick", "parts", "rows", "details")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} does not hold results of the checks ({error!r})") from None
