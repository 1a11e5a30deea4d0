"""The table at the end of a run."""

from typing import Any

from rich.table import Table

from benchmarks.serving.record import RATIOS, Record
from benchmarks.serving.targets import target_of
from benchmarks.serving.workload import FP8, LAPROX, SERVERS, STOCK

SHOWN = (
    *(
        "attention_backend",
        "output_tok_s",
        "requests_s",
        "peak_concurrency",
        "ttft_p50",
        "itl_p50",
        "itl_p99",
    ),
    *("slots_mean", "pruned_share", "prefix_hit_tokens", "kept_by_head", "laprox_ms", "prefill_busy_ms"),
    *("first_decode_ms", "to_decode_ms", "idle_ms", "syncs", "copies_to_host"),
)
# What is shown of LaProx even where it is zero.
TELLING = ("pruned_share", "syncs", "copies_to_host")


def table(record: Record, names: list[str]) -> Table:
    rows = [row for row in record.rows if row["workload"] in names]
    servers = [server for server in SERVERS if server != FP8 or any(row.get(FP8) for row in rows)]
    result = Table(title=record.content["chip"])
    beside = [f"LaProx / {server}" for server in servers if server != LAPROX]
    for column in ("workload", "figure", *servers, *beside, "target", "met"):
        result.add_column(column, justify="left" if column in ("workload", "figure") else "right")
    for row in rows:
        sides = [row.get(server) or {} for server in servers]
        told = [
            key for key in SHOWN if any(side.get(key) or (key in TELLING and key in side) for side in sides)
        ]
        for number, figure in enumerate(told):
            result.add_row(
                row["workload"] if number == 0 else "",
                figure,
                *(show(side.get(figure)) for side in sides),
                *(show(row.get(RATIOS[server], {}).get(figure)) for server in servers if server != LAPROX),
                *judged(row, figure, record.content["quick"]),
            )
        result.add_section()
    return result


def judged(row: dict[str, Any], figure: str, quick: bool) -> tuple[str, str]:
    """A target, and whether it is met; nothing of what is measured in small."""
    target = None if quick else target_of(row["workload"], figure)
    if target is None:
        return "", ""
    value = row.get("added" if target.added else RATIOS[STOCK], {}).get(figure)
    return str(target), "" if value is None else "yes" if target.met(value) else "NO"


def show(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, (int, float)):
        return " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{value:,}" if isinstance(value, int) or value >= 1000 else f"{value:.3f}"
