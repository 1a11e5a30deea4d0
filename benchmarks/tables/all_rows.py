"""All figures of all chips, with their targets, for ``benchmarks/README.md``, and some of them elsewhere."""

import re
from typing import Any

from benchmarks.checks.rows import Row
from benchmarks.harness.markdown import commit, origin, table
from benchmarks.serving.kinds import FP8, LAPROX, STOCK
from benchmarks.serving.record import RATIOS, backend_key, backends
from benchmarks.tables.cells import COUNTED, FIGURES, beside
from benchmarks.tables.committed import checks, sides
from benchmarks.tables.speed import kept_unlike_today

HEAD = (
    "workload",
    "figure",
    "stock",
    "LaProx",
    "LaProx / stock",
    "stock, fp8 KV",
    "LaProx, bf16 / stock, fp8",
    "target",
)
CHECKS_HEAD = ("check", "what", "measured", "limit", "attention backends; commit")
# The card whose figures stand on other pages.
ELSEWHERE = "h100"
# Bounds on LaProx / stock; of the waits of the host, which are counted, on LaProx - stock.
TARGETS = {
    "a": {"output_tok_s": "≥ 1.3"},
    "b": {"output_tok_s": "≥ 3", "peak_concurrency": "≥ 4"},
    "b-itl": {"itl_p50": "≤ 0.4"},
    "b-full": {"output_tok_s": "≥ 2"},
    "c": {"output_tok_s": "≥ 1.15", "prefix_hit_tokens": "≥ 0.98"},
    "c-open": {"output_tok_s": "≥ 1.3"},
    "d": {"output_tok_s": "≥ 1.1", "ttft_p50": "≤ 1.4"},
    "f": {"output_tok_s": "≥ 1.8", "itl_p50": "≤ 0.4"},
    "q": {"itl_p50": "≤ 0.35"},
    "e": {"output_tok_s": "≥ 0.98"},
    "ttft": {"ttft_p50": "≤ 1.02"},
    "lone-1k": {"ttft_p50": "≤ 1.03"},
    "profile": {"syncs": "≤ 0 more"},
}
# Of a server, with its value, where it has one.
FLAG = re.compile(r"--(?:laprox-[\w-]+|kv-cache-dtype)(?:[ =](?!-)\S+)?")


def chip(content: dict[str, Any]) -> str:
    rows = [row for row in content["rows"] if "load" not in row]
    lines = [line for row in rows for line in lines_of(row)]
    pools = ", ".join(
        f"{server} {facts['slots']:,}" for server, facts in content["servers"].get("full", {}).items()
    )
    about = f"{origin(sides(rows))}. KV slots of the whole card, in the latest run: {pools}."
    about += kept_unlike_today(content, [LAPROX])
    return f"#### {content['chip']}\n\n{about}\n\n{table(HEAD, lines, right=len(HEAD) - 2)}"


def lines_of(row: dict[str, Any]) -> list[tuple[str, ...]]:
    name = row["workload"]
    servers = [row.get(server) or {} for server in (STOCK, LAPROX, FP8)]
    # A zero says nothing, but of what is counted.
    told = [
        key for key in FIGURES if any(side.get(key) or (key in COUNTED and key in side) for side in servers)
    ]
    commits = ", ".join(sorted({commit(side) for side in servers if "commit" in side}))
    forced = "" if backend_key(row) == "default" else f"; --backend {backend_key(row)}"
    first = f"**{name}** {row['what']}; {backends(row)}{forced}; {commits}"
    lines: list[tuple[str, ...]] = []
    for number, key in enumerate(told):
        stock, laprox, fp8 = (FIGURES[key].text(side.get(key)) for side in servers)
        lines.append(
            (
                first if number == 0 else "",
                FIGURES[key].label,
                *(stock, laprox, beside(row, RATIOS[STOCK], key), fp8, beside(row, RATIOS[FP8], key)),
                judged(row, key),
            )
        )
    return lines


def judged(row: dict[str, Any], figure: str) -> str:
    target = TARGETS.get(row["workload"], {}).get(figure, "")
    value = row.get("added" if target.endswith("more") else RATIOS[STOCK], {}).get(figure)
    if not target or value is None:
        return target
    sign, bound = target.split()[:2]
    met = value >= float(bound) if sign == "≥" else value <= float(bound)
    return target if met else f"{target} **missed**"


def checked(content: dict[str, Any]) -> str:
    lines = []
    for number, row in enumerate(content["rows"]):
        part = content["parts"][row["check"]]
        backends = ", ".join(f"{server} {name}" for server, name in part.get("attention_backend", {}).items())
        first = number == 0 or content["rows"][number - 1]["check"] != row["check"]
        about = f"{backends or 'not recorded'}; {commit(part)}" if first else ""
        shown = Row(*(row[key] for key in ("check", "what", "value", "unit", "least", "most")))
        missed = " **missed**" if row["met"] is False else ""
        value = shown.number(shown.value)
        lines.append((row["check"] if first else "", row["what"], value, shown.limit() + missed, about))
    commands = " ".join(part["command"] for part in content["parts"].values())
    return f"### {', '.join([content['chip'], *FLAG.findall(commands)])}\n\n{table(CHECKS_HEAD, lines)}"


def trained_model() -> str:
    """What the 7M model answers in the checks."""
    content = checks()[ELSEWHERE]
    part = content["parts"]["needles"]
    told = [row for row in content["rows"] if row["check"] == "needles" and row["what"].startswith("exact")]
    values = "; ".join(f"{row['what']}: {row['value']:.1f} %" for row in told)
    return f"{content['chip']}, {part['date']}, commit {commit(part)}: {values}."
