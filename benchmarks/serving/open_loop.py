"""Conversations at a rate of arrivals, by ``sglang.bench_serving``; README.md says what of it is taken."""

import importlib.util
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.client import Reply, WorkloadError
from benchmarks.serving.servers import Service
from benchmarks.serving.slots import sampled
from benchmarks.serving.tally import LEVELS, Tally

MODULE = "sglang.benchmark.serving"
# The package ``datasets`` is imported for other data sets only, and not everywhere installed.
WITHOUT_DATASETS = (
    "import runpy, sys, types; stand_in = types.ModuleType('datasets'); stand_in.load_dataset = None; "
    f"sys.modules['datasets'] = stand_in; runpy.run_module('{MODULE}', run_name='__main__', alter_sys=True)"
)
# Of a run's time, that in which conversations arrive; the rest is for the last ones to end.
ARRIVING = 0.6


@dataclass(frozen=True)
class OpenLoop:
    """Conversations that come at ``rate`` a second, each of ``turns`` at once one after the other."""

    rate: float
    quick: bool = False
    turns: int = 4
    gpus: int = 1

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Tokens of what a conversation begins with, of each question, of each answer."""
        return (300, 40, 16) if self.quick else (27_648, 1024, 768)

    @property
    def name(self) -> str:
        mark = f"-tp{self.gpus}" if self.gpus > 1 else ""
        return f"open-{self.rate:g}{mark}"

    @property
    def what(self) -> str:
        first, question, answer = self.lengths
        return (
            f"{self.rate:g} conversations/s: {first + question:,} in, {self.turns} turns, "
            f"{question:,} more each, {answer} out; sglang.bench_serving"
            + (f"; {self.gpus} GPUs" if self.gpus > 1 else "")
        )

    @property
    def load(self) -> dict[str, Any]:
        return {"curve": "open", "at": self.rate, "unit": "conversations/s"}


def command(row: OpenLoop, service: Service, minutes: float, part: int, out: Path) -> list[str]:
    first, question, answer = row.lengths
    count = str(max(2, round(row.rate * 60 * minutes * ARRIVING)))
    level = LEVELS["agents"]
    spec = importlib.util.find_spec("datasets")
    return [
        *(sys.executable, *(("-m", MODULE) if spec else ("-c", WITHOUT_DATASETS))),
        *("--backend", "sglang-oai-chat", "--base-url", service.url),
        *("--model", str(service.model), "--tokenizer", str(service.model)),
        *("--dataset-name", "generated-shared-prefix", "--num-prompts", count),
        *("--gsp-num-groups", count, "--gsp-prompts-per-group", "1", "--gsp-num-turns", str(row.turns)),
        *("--gsp-system-prompt-len", str(first), "--gsp-question-len", str(question)),
        *("--gsp-output-len", str(answer), "--gsp-fast-prepare", "--gsp-send-routing-key"),
        *("--request-rate", f"{row.rate:g}", "--seed", str(part), "--flush-cache", "--cache-report"),
        *("--goodput", f"ttft:{1000 * level.first[1]:g}", f"tpot:{1000 * level.between[1]:g}"),
        *("--output-file", str(out), "--output-details", "--disable-tqdm"),
    ]


def measure_open_loop(
    row: OpenLoop, service: Service, minutes: float, part: int, say: Callable[[str], None]
) -> Tally:
    """
    Raises:
        WorkloadError: the conversations did not end in the time, or SGLang's client says no.
    """
    with (
        tempfile.TemporaryDirectory(prefix="laprox-open-loop-") as folder,
        sampled(service.url) as samples,
    ):
        out, log = Path(folder) / "result.jsonl", Path(folder) / "log"
        began = time.perf_counter()
        given = command(row, service, minutes, part, out)
        say(" ".join(["python", *given[1:]]))
        try:
            with log.open("w") as lines:
                code = subprocess.run(given, stdout=lines, stderr=lines, timeout=60 * minutes).returncode
        except subprocess.TimeoutExpired:
            raise WorkloadError(f"{row.what}: not all had ended after {minutes:g} minutes") from None
        if code or not out.exists():
            end = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise WorkloadError(f"sglang.bench_serving ended with {code}: {''.join(end)}")
        result = json.loads(out.read_text().splitlines()[-1])
    found = tally_of(result, row.turns)
    until = time.perf_counter()
    slots = Tally.of([], samples, max(began, until - result["duration"]), until)
    found.slots, found.host = slots.slots, slots.host
    return found


def tally_of(result: dict[str, Any], turns: int) -> Tally:
    """From a line of SGLang's ``--output-file`` with ``--output-details``: conversation by conversation."""
    columns = ("input_lens", "output_lens", "ttfts", "itls", "errors", "cached_tokens")
    replies: list[Reply] = []
    for number, (prompt, output, first, gaps, error, hits) in enumerate(
        zip(*(result[column] for column in columns), strict=True)
    ):
        turn = number % turns
        before = replies[-1] if turn else None
        known = before.prompt_tokens + sum(tokens for _, tokens in before.chunks) if before else 0
        reply = Reply(prompt, 0.0, turn, min(known, prompt), hit_tokens=hits, error=error)
        # A request without a first token is one that failed, whatever else is said of it.
        if not error and first and output:
            times = list(itertools.accumulate(gaps, initial=first))
            each, more = divmod(output - 1, max(1, len(gaps)))
            reply.chunks = [(times[0], 1 if gaps else output)]
            reply.chunks += [(at, each + (place < more)) for place, at in enumerate(times[1:])]
            reply.chunks = [chunk for chunk in reply.chunks if chunk[1]]
            reply.done = True
        elif not error:
            reply.error = "no token came"
        replies.append(reply)
    found = Tally.of(replies, [], 0.0, float("inf"))
    found.seconds = round(result["duration"], 2)
    return found
