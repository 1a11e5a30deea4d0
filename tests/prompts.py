"""Prompts and checks that servers of different kinds have in common."""

import random
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks.harness.client import chosen_logprobs, facts
from benchmarks.quality.methods.choice import Chooser, cells_of
from benchmarks.quality.methods.reader import Model, Prefix
from benchmarks.quality.served import compare
from laprox_sglang.options.server import WINDOW, Config
from laprox_sglang.report.positions import kept_positions
from laprox_tools.needle import Task
from server import Server

OPTED_OUT = {"enabled": False}
IDENTITY_TOKENS = 16


class Tolerance(NamedTuple):
    """How far a server may be from the oracle.

    Attributes:
        logprob: of a token.
        gap: of scores whose cells changed places, as a share of the higher one.
        equal: share of the kept cells that must be the reference's.
    """

    logprob: float
    gap: float
    equal: float


EXACT = Tolerance(3e-4, 1e-3, 0.999)
# Numbers that differ in rounding alone may come out as two neighbours of e4m3, a sixteenth apart.
IN_FP8 = Tolerance(3e-3, 0.1, 0.995)


@dataclass(frozen=True)
class StockReplies:
    """What stock SGLang says to prompts sent one by one."""

    prompts: list[list[int]]
    replies: list[dict[str, Any]]


@cache
def ask_stock(seed: int, kv_dtype: str = "auto") -> StockReplies:
    """Asks a stock server once for all tests that compare with it; one with other KV less."""
    prompts = identity_prompts(seed)[:: 1 if kv_dtype == "auto" else 6]
    with Server("--kv-cache-dtype", kv_dtype) as server:
        replies = [
            server.generate(prompt, IDENTITY_TOKENS, return_logprob=True, logprob_start_len=0)
            for prompt in prompts
        ]
    return StockReplies(prompts, replies)


def identity_prompts(seed: int) -> list[list[int]]:
    """24 prompts: 6 below the default of --laprox-min-tokens, the rest of up to 1,600 tokens."""
    draw = random.Random(seed)
    lengths = [draw.randint(60, 250) for _ in range(6)] + [draw.randint(300, 1600) for _ in range(18)]
    return [Task(draw.random()).batch(1, length)[0].prompt_ids() for length in lengths]


def check_identity(server: Server, stock: StockReplies) -> None:
    """Prompts that are not pruned, at budget 1.0 or for their length: the same ids as stock."""
    for prompt, expected in zip(stock.prompts, stock.replies, strict=True):
        short = len(prompt) < 256
        reply = server.generate(prompt, IDENTITY_TOKENS, {"budget": 0.1} if short else None)
        assert facts(reply)["reason"] == ("short" if short else "within_budget")
        assert reply["output_ids"] == expected["output_ids"]
    assert server.laprox()["prunes"] == 0


@dataclass(frozen=True)
class Case:
    """One pruned prompt: ``cached`` tokens of it are in the tree before it comes, as exact KV."""

    prompt: list[int]
    budget: float | int
    cached: int
    keep_prefix: int = 0


def oracle_cases(draw: random.Random, chunk: int) -> list[Case]:
    """Prompts of different lengths and budgets, with prefix hits, in one chunk and in several."""
    cases = []
    for i in range(24):
        length = draw.randint(320, chunk) if i % 3 == 0 else draw.randint(chunk, 2040)
        prompt = Task(draw.random()).batch(1, length)[0].prompt_ids()
        cached = draw.randint(1, len(prompt) - 300) if i % 2 else 0
        # As small a view as there is, what a fraction is at least, and larger ones.
        budget = draw.choice([28, 0.05, 0.1, 0.2, 0.5])
        if i % 4 == 3:
            # All but one: everything is packed, hardly anything is lost.
            budget = len(prompt) - 1
        cases.append(Case(prompt, budget, cached))
    # A last chunk of one token, so that the window lies in the chunk before.
    prompt = Task(draw.random()).batch(1, 2040)[0].prompt_ids()[: 2 * chunk + 1]
    cases.append(Case(prompt, 0.1, 0))
    # A window that is cut in two, behind a prefix that stays dense.
    cases.append(Case(prompt[: chunk + 2] + prompt[:2], 0.1, 0, keep_prefix=100))
    # All of the prompt is cached but its last token, and the dense prefix ends within what is cached.
    prompt = Task(draw.random()).batch(1, 900)[0].prompt_ids()
    cases.append(Case(prompt, 35, len(prompt) - 1, keep_prefix=200))
    return cases


def check_oracle(
    server: Server,
    oracle: Model,
    cases: list[Case],
    minimum: int,
    kv_dtype: torch.dtype | None = None,
    tolerance: Tolerance = EXACT,
) -> str:
    """Compares each case with Hugging Face's Llama over the same cells, and these with the reference's.

    Args:
        kv_dtype: that the server rounds KV to.

    Returns:
        A line with the largest difference.
    """
    replies = []
    for case in cases:
        if case.cached:
            # The padding token ends the match here, whatever else the server adds behind it.
            server.generate([*case.prompt[: case.cached], 0], 1)
        options = {"budget": case.budget, "keep_prefix": case.keep_prefix, "return_kept": True}
        # The first token comes out of the prefill; 16 decode steps follow.
        reply = server.generate(case.prompt, 17, options, return_logprob=True)
        replies.append(reply)
        said = facts(reply)
        # The window is always computed.
        assert reply["meta_info"]["cached_tokens"] == min(case.cached, len(case.prompt) - WINDOW)
        assert said["pruned"] and said["dense_tokens"] == case.keep_prefix, said
        assert said["slots_before"] == len(case.prompt) - case.keep_prefix
        server.flush()

    assert len(cases) >= minimum
    # Torch runs only now: beside a busy server it would starve it.
    worst, kept = 0.0, {"cells": 0, "equal": 0}
    for case, reply in zip(cases, replies, strict=True):
        prefix = oracle.prefill(case.prompt, kv_dtype=kv_dtype)
        worst = max(worst, difference(oracle, prefix, reply, tolerance))
        config = Config(keep_prefix=case.keep_prefix)
        found = compare(cells_in(reply, prefix), Chooser(oracle, prefix), config, case.budget)
        # Cells may change places whose scores differ in rounding alone.
        assert found["gap"] < tolerance.gap, found
        kept = {name: kept[name] + int(found[name]) for name in kept}
    assert kept["equal"] > tolerance.equal * kept["cells"]
    return (
        f"{len(cases)} pruned prompts against the oracle: log-probs differ by at most {worst:.1e}, "
        f"{kept['equal'] / kept['cells']:.3%} of {kept['cells']:,} kept cells are the reference's"
    )


def difference(oracle: Model, prefix: Prefix, reply: dict[str, Any], tolerance: Tolerance = EXACT) -> float:
    """Largest difference of the log-probs; the prompt's own KV is exact, whatever turn it is."""
    output = reply["output_ids"]
    (logprobs,) = oracle.follow(prefix, output[:-1], cells_in(reply, prefix)[None])
    return farthest(logprobs, output, chosen_logprobs(reply), tolerance)


def farthest(
    logprobs: torch.Tensor, ids: list[int], said: list[float], tolerance: Tolerance = EXACT
) -> float:
    """Largest difference between what was said of greedy tokens and ``logprobs`` ``[T, vocabulary]``."""
    expected = logprobs.gather(1, torch.tensor(ids)[:, None])[:, 0]
    # Two tokens may be as likely as each other.
    assert (logprobs.amax(-1) - expected).max() <= tolerance.logprob
    assert said == pytest.approx(expected.tolist(), abs=tolerance.logprob)
    return float((torch.tensor(said) - expected).abs().max())


def cells_in(reply: dict[str, Any], prefix: Prefix) -> torch.Tensor:
    """The cells that a reply says were kept: bool ``[L, H, n]``."""
    said = facts(reply)
    return cells_of(kept_positions(said), said["dense_tokens"], len(prefix.ids))
