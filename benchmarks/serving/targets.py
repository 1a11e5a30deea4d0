"""The bounds that the serving benchmark's figures are read against."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A bound on what one figure of one workload is on LaProx, beside stock.

    Attributes:
        added: of the difference LaProx - stock; otherwise of the ratio LaProx / stock.
    """

    workload: str
    figure: str
    sign: str
    bound: float
    added: bool = False

    def met(self, value: float) -> bool:
        return value >= self.bound if self.sign == "≥" else value <= self.bound

    def __str__(self) -> str:
        return f"{self.sign} {self.bound:g}{' more' if self.added else ''}"


TARGETS = (
    Target("a", "output_tok_s", "≥", 1.3),
    Target("b", "output_tok_s", "≥", 3.0),
    Target("b", "peak_concurrency", "≥", 4.0),
    Target("b-itl", "itl_p50", "≤", 0.4),
    Target("b-full", "output_tok_s", "≥", 2.0),
    Target("b-admit", "peak_concurrency", "≥", 5.0),
    Target("c", "output_tok_s", "≥", 1.15),
    Target("c", "prefix_hit_tokens", "≥", 0.98),
    Target("c-open", "output_tok_s", "≥", 1.3),
    Target("d", "output_tok_s", "≥", 1.1),
    Target("d", "ttft_p50", "≤", 1.4),
    Target("f", "output_tok_s", "≥", 1.8),
    Target("f", "itl_p50", "≤", 0.4),
    Target("q", "itl_p50", "≤", 0.35),
    Target("e", "output_tok_s", "≥", 0.98),
    Target("ttft", "ttft_p50", "≤", 1.02),
    Target("lone-1k", "ttft_p50", "≤", 1.03),
    Target("profile", "syncs", "≤", 0, added=True),
)


def target_of(workload: str, figure: str) -> Target | None:
    return next(
        (target for target in TARGETS if (target.workload, target.figure) == (workload, figure)), None
    )
