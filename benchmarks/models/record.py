"""The results file: a line of JSON for each model that was tried."""

import json
from pathlib import Path
from typing import Any

from benchmarks.harness.files import RecordError, replacing
from benchmarks.harness.provenance import fault_of, made_by, same_origin


class Record:
    """Lines by model; each is written as soon as it is known."""

    def __init__(self, path: Path | None) -> None:
        """
        Raises:
            RecordError: the file holds something else, or nothing can be written there.
        """
        if fault := fault_of(path):
            raise RecordError(fault)
        self._path = path
        self.lines = read(path) if path is not None and path.exists() else {}

    def holds(self, model: str) -> bool:
        """Whether it was tried on this commit, with these versions."""
        return same_origin(self.lines.get(model, {}))

    def put(self, model: str, seed: int, verdict: dict[str, Any]) -> None:
        self.lines[model] = {"model": model, **verdict, "seed": seed, **made_by()}
        if self._path is not None:
            with replacing(self._path) as draft:
                lines = (json.dumps(line, ensure_ascii=False) for line in self.lines.values())
                draft.write_text("".join(f"{line}\n" for line in lines))


def read(path: Path) -> dict[str, dict[str, Any]]:
    """
    Raises:
        RecordError: it holds no lines of models.
    """
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return {line["model"]: line for line in lines}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path} does not hold models that were tried ({error!r})") from None
