"""Counts of one load point that can be added up over parts, and the figures that they give.

Times go into bins of 1 %, so percentiles are right to half of that, and parts of a point become one point by
adding their bins.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Self

from benchmarks.serving.client import Reply

BIN = math.log(1.01)
# A shorter point says nothing about steady state, and calls itself invalid. AgentX asks for 900.
LEAST_SECONDS = 300.0
MOST_FAILED = 0.05
# First turns, and how later ones are grouped, by the first turn of each group.
TURNS = (1, 2, 6, 16, 32)


class Level(NamedTuple):
    """A service level: (percentile, seconds) of the first token, and of the time between tokens."""

    first: tuple[float, float]
    between: tuple[float, float]


# https://github.com/kubernetes-sigs/inference-perf, workload catalog: code agents, chat.
LEVELS = {"agents": Level((95, 30.0), (99, 0.1)), "chat": Level((99, 1.0), (99, 0.05))}


class Histogram(dict[int, int]):
    """How many values fell into each bin."""

    def note(self, values: Iterable[float]) -> None:
        for value in values:
            place = round(math.log(max(value, 1e-6)) / BIN)
            self[place] = self.get(place, 0) + 1

    def add(self, other: dict[int, int]) -> None:
        for place, count in other.items():
            self[place] = self.get(place, 0) + count

    def percentile(self, percent: float) -> float | None:
        left = percent / 100 * sum(self.values())
        for place, count in sorted(self.items()):
            left -= count
            if left <= 0:
                return math.exp(place * BIN)
        return None


@dataclass
class Tally:
    """
    Attributes:
        seconds: measured, after the warm-up.
        waiting: requests without a first token at the end; ``late`` those that had waited longer than a level
            allows. These stand among the first tokens with the time they had waited until then.
        new_tokens: prompt tokens that the server had not seen in the step before; ``again`` those that it had
            and computed once more.
        good: requests within each service level, by their first token and their mean time between tokens, as
            ``--goodput`` of SGLang's client has it.
        output_of_good: tokens of those.
        slots: [samples, sum, largest] of the slots on the GPU; ``host`` of those in host memory.
    """

    seconds: float = 0.0
    requests: int = 0
    failed: int = 0
    waiting: int = 0
    prompt_tokens: int = 0
    hit_tokens: int = 0
    host_tokens: int = 0
    new_tokens: int = 0
    again: int = 0
    output_tokens: int = 0
    late: dict[str, int] = field(default_factory=dict)
    good: dict[str, int] = field(default_factory=dict)
    output_of_good: dict[str, int] = field(default_factory=dict)
    slots: list[int] = field(default_factory=lambda: [0, 0, 0])
    host: list[int] = field(default_factory=lambda: [0, 0, 0])
    ttft: Histogram = field(default_factory=Histogram)
    itl: Histogram = field(default_factory=Histogram)
    per_token: Histogram = field(default_factory=Histogram)
    by_turn: dict[int, Histogram] = field(default_factory=dict)

    @classmethod
    def of(
        cls, replies: Sequence[Reply], samples: Sequence[tuple[float, int, int]], since: float, until: float
    ) -> Self:
        """What happened in a period, by ``time.perf_counter``."""
        tally = cls(seconds=round(until - since, 2))
        for reply in replies:
            tally.output_tokens += sum(tokens for at, tokens in reply.chunks if since <= at <= until)
            if reply.done and since <= reply.chunks[-1][0] <= until:
                tally._count(reply)
            elif reply.error and since <= reply.sent <= until:
                tally.failed += 1
            elif not reply.chunks and not reply.error and reply.sent <= until:
                tally.waiting += 1
                waited = until - reply.sent
                late = [name for name, level in LEVELS.items() if waited > level.first[1]]
                tally.late |= {name: tally.late.get(name, 0) + 1 for name in late}
                if late:
                    tally._first(reply.turn, waited)
        for at, used, host in samples:
            if since <= at <= until:
                for counts, value in ((tally.slots, used), (tally.host, host)):
                    counts[:] = [counts[0] + 1, counts[1] + value, max(counts[2], value)]
        return tally

    def _first(self, turn: int, seconds: float) -> None:
        group = max(start for start in TURNS if start <= turn + 1)
        self.ttft.note([seconds])
        self.by_turn.setdefault(group, Histogram()).note([seconds])

    def _count(self, reply: Reply) -> None:
        gaps, output = reply.gaps(), len(reply.ids) or sum(tokens for _, tokens in reply.chunks)
        self.requests += 1
        self.prompt_tokens += reply.prompt_tokens
        self.hit_tokens += reply.hit_tokens
        self.host_tokens += reply.host_tokens
        self.new_tokens += reply.prompt_tokens - reply.known
        self.again += max(0, reply.known - reply.hit_tokens)
        self._first(reply.turn, reply.ttft)
        self.itl.note(gaps)
        self.per_token.note([reply.seconds / output])
        between = (reply.seconds - reply.ttft) / max(1, output - 1)
        for name, level in LEVELS.items():
            if reply.ttft <= level.first[1] and between <= level.between[1]:
                self.good[name] = self.good.get(name, 0) + 1
                self.output_of_good[name] = self.output_of_good.get(name, 0) + output

    def add(self, other: "Tally") -> None:
        """Adds a part of the same point."""
        for count in fields(self):
            ours, theirs = getattr(self, count.name), getattr(other, count.name)
            if isinstance(ours, Histogram):
                ours.add(theirs)
            elif count.name == "by_turn":
                for turn, histogram in theirs.items():
                    ours.setdefault(turn, Histogram()).add(histogram)
            elif isinstance(ours, dict):
                ours |= {name: ours.get(name, 0) + value for name, value in theirs.items()}
            elif isinstance(ours, list):
                ours[:] = [ours[0] + theirs[0], ours[1] + theirs[1], max(ours[2], theirs[2])]
            else:
                setattr(self, count.name, ours + theirs)

    def to_json(self) -> dict[str, Any]:
        """Histograms as [bin, count, bin, count, ...]."""

        def plain(value: Any) -> Any:
            if isinstance(value, Histogram):
                return [number for pair in sorted(value.items()) for number in pair]
            return {str(key): plain(one) for key, one in value.items()} if isinstance(value, dict) else value

        return {count.name: plain(getattr(self, count.name)) for count in fields(self)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        def histogram(numbers: list[int]) -> Histogram:
            return Histogram(zip(numbers[::2], numbers[1::2], strict=True))

        given = dict(content)
        given |= {name: histogram(given[name]) for name in ("ttft", "itl", "per_token")}
        given["by_turn"] = {int(turn): histogram(numbers) for turn, numbers in given["by_turn"].items()}
        return cls(**given)

    def figures(self) -> dict[str, Any]:
        """Times in milliseconds, rates per second; ``invalid`` says why the point should not be quoted."""
        seconds = max(self.seconds, 1e-9)

        def ms(histogram: Histogram, percent: float) -> float | None:
            found = histogram.percentile(percent)
            return None if found is None else round(found * 1000, 3)

        result: dict[str, Any] = {
            "seconds": self.seconds,
            "requests": self.requests,
            "failed_requests": self.failed,
            "waiting_at_end": self.waiting,
            "output_tok_s": round(self.output_tokens / seconds, 2),
            "requests_s": round(self.requests / seconds, 4),
            **{f"ttft_p{percent}": ms(self.ttft, percent) for percent in (50, 90, 95, 99)},
            **{f"itl_p{percent}": ms(self.itl, percent) for percent in (50, 99)},
            "per_token_p50": ms(self.per_token, 50),
            "per_token_p90": ms(self.per_token, 90),
            "interactivity_p50": inverse(ms(self.per_token, 50)),
            "interactivity_p90": inverse(ms(self.per_token, 90)),
            "ttft_p50_by_turn": {turns(turn): ms(found, 50) for turn, found in sorted(self.by_turn.items())},
            "prefix_hit_tokens": self.hit_tokens,
            "host_hit_tokens": self.host_tokens,
            "prompt_tokens": self.prompt_tokens,
            "new_prompt_tokens": self.new_tokens,
            "computed_again": self.again,
            "slots_mean": round(self.slots[1] / self.slots[0]) if self.slots[0] else None,
            "slots_peak": self.slots[2] or None,
            "host_slots_mean": round(self.host[1] / self.host[0]) if self.host[1] else None,
        }
        for name, level in LEVELS.items():
            good = self.good.get(name, 0)
            first, between = self.ttft.percentile(level.first[0]), self.itl.percentile(level.between[0])
            result[f"goodput_{name}"] = {
                "requests_s": round(good / seconds, 4),
                "output_tok_s": round(self.output_of_good.get(name, 0) / seconds, 2),
                "share": round(good / max(1, self.requests + self.failed + self.late.get(name, 0)), 4),
                "met": within(first, level.first[1]) and within(between, level.between[1]),
            }
        result["invalid"] = self.faults()
        return result

    def faults(self) -> list[str]:
        found = []
        if self.seconds < LEAST_SECONDS:
            found.append(f"partial: {self.seconds:.0f} of at least {LEAST_SECONDS:.0f} s measured")
        if self.failed > MOST_FAILED * (self.requests + self.failed):
            found.append(f"{self.failed} of {self.requests + self.failed} requests failed")
        if not self.requests:
            found.append("no request ended")
        return found


def within(value: float | None, bound: float) -> bool:
    return value is not None and value <= bound


def inverse(milliseconds: float | None) -> float | None:
    """Tokens a second of one user."""
    return None if not milliseconds else round(1000 / milliseconds, 2)


def turns(first: int) -> str:
    later = [start for start in TURNS if start > first]
    last = later[0] - 1 if later else None
    return str(first) if last == first else f"{first}-{last}" if last else f"{first}+"
