"""Which rule shares one budget over prompts of different length best, for ``docs/quality.md``."""

import json

from benchmarks.harness.markdown import origin, table
from benchmarks.quality.sharing import HEAD, rows
from benchmarks.tables.committed import RESULTS


def shared() -> str:
    record = json.loads((RESULTS / "quality-sharing.json").read_text())
    groups = record["groups"]
    prompts = len(groups) * len(next(iter(groups[0][next(iter(groups[0]))].values())))
    said = f"{prompts} prompts, {record['model']}, {record['chip']}, {origin([record])}."
    return f"{said}\n\n{table(HEAD, rows(groups), right=9)}"
