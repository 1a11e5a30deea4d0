"""How a figure is written in a table, and which of two is the better one."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """
    Attributes:
        more: more of it is better; None where neither is.
    """

    label: str
    unit: str = ""
    more: bool | None = None

    def text(self, value: Any) -> str:
        if value is None:
            return "–"
        if isinstance(value, list):
            return ", ".join(f"{part:,}" for part in value)
        digits = 0 if isinstance(value, int) or value >= 100 else 1
        return f"{value:,.{digits}f} {self.unit}".rstrip()


MS = "ms"
# Of these only a difference of two servers says something.
COUNTED = ("syncs", "copies_to_host", "idle_ms")
FIGURES = {
    "output_tok_s": Figure("output tokens/s", more=True),
    "peak_concurrency": Figure("requests at once", more=True),
    "ttft_p50": Figure("time to first token, median", MS, more=False),
    "ttft_p99": Figure("time to first token, 99 %", MS, more=False),
    "itl_p50": Figure("time between tokens, median", MS, more=False),
    "itl_p99": Figure("time between tokens, 99 %", MS, more=False),
    "interactivity_p90": Figure("a user's tokens/s, 90 % have more", more=True),
    "again": Figure("prompt tokens computed again", "%", more=False),
    "slots_mean": Figure("slots pinned, mean", more=False),
    "prefix_hit_tokens": Figure("prompt tokens from the prefix cache", more=True),
    "kept_by_head": Figure("cells a KV head keeps: least, 10 %, median, 90 %, most"),
    "kept_by_head_even": Figure("the same without the bias"),
    "syncs": Figure("waits of the host, first token to first decode step", more=False),
    "copies_to_host": Figure("copies to the host in that time", more=False),
    "idle_ms": Figure("GPU idle in that time", MS, more=False),
    "to_decode_ms": Figure("first token to first decode step", MS, more=False),
    "laprox_ms": Figure("score, select and pack", MS),
    "prefill_busy_ms": Figure("prefill", MS, more=False),
}


def beside(row: dict[str, Any], ratios: str, figure: str) -> str:
    """LaProx / another server, or LaProx - stock of what is counted; bold where LaProx is behind.

    Args:
        ratios: key of the row's ratios to that server.
    """
    more = FIGURES[figure].more
    if figure in COUNTED:
        value = row.get("added", {}).get(figure) if ratios == "ratio" else None
        return "" if value is None else bold(f"{value:+g}", value > 0)
    value = row.get(ratios, {}).get(figure)
    if value is None or more is None:
        return ""
    return ratio_text(value, more)


def ratio_text(value: float, more: bool) -> str:
    """A ratio, bold where LaProx is behind; near 1 with a digit more, which shows on which side it is."""
    text = f"{value:.3f}" if 0.95 < value < 1.05 else f"{value:.2f}"
    return bold(text, is_behind(float(text), more))


def is_behind(ratio: float, more: bool) -> bool:
    """Whether LaProx has less of what is better, or more of what is worse."""
    return ratio < 1 if more else ratio > 1


def bold(text: str, behind: bool) -> str:
    return f"**{text}**" if behind else text
