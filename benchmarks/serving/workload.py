"""One workload: what is asked of a server, and the prompts that it is asked with."""

import contextlib
import importlib
import io
import random
import sys
from dataclasses import dataclass, field
from types import ModuleType

import numpy
import transformers

from laprox_tools.needle import CLASSES, MODEL_PATH, to_ids

STOCK, LAPROX, FP8 = "stock", "laprox", "stock-fp8"
SERVERS = (STOCK, LAPROX, FP8)
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
        seconds: what a run takes about on an H200, in the order of ``SERVERS``; a guess to plan by.
        output: tokens that each turn generates.
        shared: length of the prompt that all requests of a group share, or all at all.
        groups: how many groups; their shared prompts are cached before the run.
        keep: what LaProx keeps dense of each prompt.
        addition: what the user adds in each later turn.
        clients: requests at once; 0 sends all of them at time 0.
        rounds: measured runs; a figure is their median.
        pruned: share of the requests that must be pruned.
        admission: stop when the server takes no more requests, or enough of them.
        servers: where it runs.
        stock_of: the workload whose figures of stock stand for this one, which only LaProx runs.
        at_peak: it sends as many requests as stock ran at once in ``stock_of``.
        skew: KV heads keep uneven numbers of cells (``skew.py``).
        profile: a run under SGLang's profiler.
    """

    name: str
    what: str
    pool: str
    seconds: tuple[int, ...]
    requests: int
    prompt: int
    output: int
    shared: int = 0
    groups: int = 0
    keep: int = 0
    turns: int = 1
    addition: int = 0
    clients: int = 0
    rounds: int = 1
    pruned: float = 1.0
    admission: bool = False
    servers: tuple[str, ...] = (STOCK, LAPROX)
    stock_of: str = ""
    at_peak: bool = False
    skew: bool = False
    profile: bool = False

    @property
    def total(self) -> int:
        return self.requests * self.turns

    @property
    def limit(self) -> float:
        """Seconds after which a run is given up."""
        return 180 + 2.5 * max(self.seconds) / self.rounds

    def guess(self, server: str) -> int:
        """Seconds of all its rounds on a server."""
        return dict(zip(SERVERS, self.seconds, strict=False))[server]

    def scripts(self, number: int) -> tuple[list[Script], list[Script]]:
        """Unmeasured requests and measured ones of a round; the same for every server."""
        seed = f"{self.name} {number}"
        if self.groups:
            return shared_prompts(self, seed)
        source = random.Random(seed)
        shared = words(source, self.shared)
        scripts = [
            Script(
                shared + words(source, self.prompt),
                [words(source, self.addition) for _ in range(self.turns - 1)],
            )
            for _ in range(self.requests + 1)
        ]
        # One request of the same shape pays for whatever is compiled at first use.
        return [Script(scripts[0].prompt)] if number == 0 else [], scripts[1:]


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
