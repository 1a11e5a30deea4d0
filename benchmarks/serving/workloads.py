"""What the serving benchmark asks of a server, and the targets that its figures are read against."""

import contextlib
import importlib
import io
import random
import sys
from dataclasses import dataclass, field
from types import ModuleType

import numpy
import transformers

from laprox_sglang.needle import CLASSES, MODEL_PATH, to_ids

STOCK, LAPROX = "stock", "laprox"
SERVERS = (STOCK, LAPROX)
BUDGET = 0.05
WARM_TOKENS = 8


@dataclass(frozen=True)
class Script:
    """What one client sends: a prompt, then what the user adds to the conversation in each later turn."""

    prompt: list[int]
    additions: list[list[int]] = field(default_factory=list)

    @property
    def turns(self) -> int:
        return 1 + len(self.additions)


@dataclass(frozen=True)
class Workload:
    """One row of the results. Lengths are in tokens.

    Attributes:
        pool: ``fixed`` or ``full``: the size of the KV pool it runs on.
        seconds: what a run on (stock, LaProx) takes about; a guess to plan by.
        output: tokens that each turn generates.
        shared: length of the prompt that all requests of a group share.
        addition: what the user adds in each later turn.
        clients: requests at once; 0 sends all of them at time 0.
        rounds: measured runs; a figure is their median.
        pruned: share of the requests that must be pruned.
        admission: stop when the server takes no more requests, or enough of them.
        servers: where it runs.
        profile: a run under SGLang's profiler.
    """

    name: str
    what: str
    pool: str
    seconds: tuple[int, int]
    requests: int
    prompt: int
    output: int
    shared: int = 0
    groups: int = 0
    turns: int = 1
    addition: int = 0
    clients: int = 0
    rounds: int = 1
    pruned: float = 1.0
    admission: bool = False
    servers: tuple[str, ...] = SERVERS
    profile: bool = False

    @property
    def total(self) -> int:
        return self.requests * self.turns

    @property
    def limit(self) -> float:
        """Seconds after which a run is given up."""
        return 60 + 2.5 * max(self.seconds) / self.rounds

    def scripts(self, number: int) -> tuple[list[Script], list[Script]]:
        """Unmeasured requests and measured ones of a round; the same for every server."""
        seed = f"{self.name} {number}"
        if self.groups:
            return shared_prompts(self, seed)
        source = random.Random(seed)
        scripts = [
            Script(words(source, self.prompt), [words(source, self.addition) for _ in range(self.turns - 1)])
            for _ in range(self.requests + 1)
        ]
        # One request of the same shape pays for whatever is compiled at first use.
        return [Script(scripts[0].prompt)] if number == 0 else [], scripts[1:]


@dataclass(frozen=True)
class Target:
    """A bound on the ratio LaProx / stock of one figure of one workload."""

    workload: str
    figure: str
    sign: str
    bound: float

    def met(self, ratio: float) -> bool:
        return ratio >= self.bound if self.sign == "≥" else ratio <= self.bound

    def __str__(self) -> str:
        return f"{self.sign} {self.bound:g}"


TARGETS = (
    Target("a", "output_tok_s", "≥", 1.25),
    Target("b", "output_tok_s", "≥", 3.0),
    Target("b", "peak_concurrency", "≥", 4.0),
    Target("b-itl", "itl_p50", "≤", 0.4),
    Target("b-full", "peak_concurrency", "≥", 5.0),
    Target("c", "output_tok_s", "≥", 1.15),
    Target("c", "prefix_hit_tokens", "≥", 0.98),
    Target("e", "output_tok_s", "≥", 0.97),
    Target("ttft", "ttft_p50", "≤", 1.02),
)
# What an admission workload lets LaProx reach before it stops: the target and a little.
ENOUGH = 5.1
KEEP_PREFIX, QUICK_KEEP_PREFIX = 8192, 300


def workloads(quick: bool) -> dict[str, Workload]:
    """All workloads by name, in the order in which they run; the small ones if ``quick``."""
    rows = quick_workloads() if quick else full_workloads()
    return {row.name: row for row in rows}


def full_workloads() -> list[Workload]:
    k = 1024
    flight = 128 * k
    sweep = [
        Workload(
            *(f"sweep-{n}k", f"{n}K in, 512 out, {flight // k}K prompt tokens in flight", "fixed", (13, 13)),
            *(flight // (n * k), n * k, 512),
        )
        for n in (4, 8, 16, 32)
    ]
    return [
        Workload("b", "32K in, 4K out, unique, 262,144 slots", "fixed", (320, 120), 35, 32 * k, 4 * k),
        # As many requests as stock ran at once in b; the number here only bounds it.
        Workload(
            *("b-itl", "b at the concurrency that stock reaches", "fixed", (0, 40), 7, 32 * k, 4 * k),
            servers=(LAPROX,),
        ),
        Workload("ttft", "a lone request, 32K in", "fixed", (18, 18), 1, 32 * k, 8, rounds=7),
        Workload(
            *("e", "short prompts, none pruned", "fixed", (27, 27), 256, 128, 256),
            clients=64, rounds=3, pruned=0.0,
        ),
        Workload(
            *("d", "6 turns, the history growing", "fixed", (12, 25), 4, 8 * k, 256), turns=6, addition=k
        ),
        *sweep,
        Workload(
            "profile", "a lone request, 32K in, traced", "fixed", (20, 20), 1, 32 * k, 8, profile=True
        ),
        Workload("a", "32K in, 512 out, unique", "full", (135, 105), 48, 32 * k, 512),
        # In b, weights alone are 0.4 of stock's step; here its KV is nearly all of it.
        Workload(
            *("a-itl", "a at the concurrency that stock reaches", "full", (0, 45), 48, 32 * k, 512),
            servers=(LAPROX,),
        ),
        Workload(
            *("b-full", "requests of b admitted to the full pool", "full", (70, 260), 160, 32 * k, 4 * k),
            admission=True,
        ),
        Workload(
            *("c", "8K shared, 8K private, 512 out", "full", (90, 75), 128, 8 * k, 512),
            shared=KEEP_PREFIX, groups=4,
        ),
    ]  # fmt: skip


def quick_workloads() -> list[Workload]:
    flight = 1200
    sweep = [
        Workload(f"sweep-{n}", f"{n} in, 8 out", "fixed", (2, 2), flight // n, n, 8) for n in (300, 400, 600)
    ]
    return [
        Workload("b", "600 in, 64 out, unique, 2,600 slots", "fixed", (20, 8), 8, 600, 64),
        Workload(
            *("b-itl", "b at the concurrency that stock reaches", "fixed", (0, 5), 8, 600, 64),
            servers=(LAPROX,),
        ),
        Workload("ttft", "a lone request, 600 in", "fixed", (3, 3), 1, 600, 4, rounds=7),
        Workload(
            *("e", "short prompts, none pruned", "fixed", (8, 8), 16, 48, 16),
            clients=8, rounds=3, pruned=0.0,
        ),
        Workload("d", "6 turns, the history growing", "fixed", (8, 8), 2, 300, 8, turns=6, addition=40),
        *sweep,
        Workload("profile", "a lone request, 600 in, traced", "fixed", (10, 10), 1, 600, 8, profile=True),
        Workload("a", "600 in, 16 out, unique", "full", (6, 5), 12, 600, 16),
        Workload(
            *("a-itl", "a at the concurrency that stock reaches", "full", (0, 5), 12, 600, 16),
            servers=(LAPROX,),
        ),
        Workload(
            *("b-full", "requests of b admitted to 6,000 slots", "full", (10, 15), 60, 600, 64),
            admission=True,
        ),
        Workload(
            *("c", "300 shared, 300 private, 16 out", "full", (6, 6), 8, 300, 16),
            shared=QUICK_KEEP_PREFIX, groups=2,
        ),
    ]  # fmt: skip


def words(source: random.Random, count: int) -> list[int]:
    """Random token ids that stand for words; no control token is among them."""
    first, last = CLASSES["DIGIT"].start, CLASSES["ADVERB"].stop
    return source.choices(range(first, last), k=count)


def shared_prompts(workload: Workload, seed: str) -> tuple[list[Script], list[Script]]:
    """SGLang's own ``generated-shared-prefix``; the first request of each group is an unmeasured one."""
    size = workload.requests // workload.groups + 1
    generator = shared_prefix_generator()
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL_PATH)
    random.seed(seed)
    numpy.random.seed(0)
    # It prints its progress. A routing key keeps it from leaving its prompts in a cache of the user's.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        rows = generator.sample_generated_shared_prefix_requests(
            num_groups=workload.groups,
            prompts_per_group=size,
            system_prompt_len=workload.shared,
            question_len=workload.prompt,
            output_len=workload.output,
            range_ratio=1.0,
            tokenizer=tokenizer,
            seed=0,
            send_routing_key=True,
            fast_prepare=True,
            ordered=True,
        )
    scripts = [Script(to_ids(row.prompt.split())) for row in rows]
    assert all(len(script.prompt) == workload.shared + workload.prompt for script in scripts)
    warm = scripts[::size]
    measured = [script for number, script in enumerate(scripts) if number % size]
    random.Random(seed).shuffle(measured)
    return warm, measured


def shared_prefix_generator() -> ModuleType:
    """SGLang's module, also where the package ``datasets`` is missing: only other data sets need it."""
    name = "sglang.benchmark.datasets.generated_shared_prefix"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
    stand_in = ModuleType("datasets")
    stand_in.load_dataset = None  # type: ignore[attr-defined]
    sys.modules["datasets"] = stand_in
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules["datasets"]
