"""Freed slots are free: for admission, under pressure, and without a prefix cache."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from benchmarks.harness.client import facts
from laprox_tools.needle import Task
from server import Server

pytestmark = pytest.mark.full


def peak_concurrency(server: Server, prompts: list[list[int]], tokens: int) -> int:
    """How many requests were generating at once, by when their tokens arrived."""

    def span(ids: list[int]) -> tuple[float, float]:
        arrivals = [time.monotonic() for _ in server.stream(ids, tokens)]
        return arrivals[0], arrivals[-1]

    with ThreadPoolExecutor(len(prompts)) as pool:
        spans = list(pool.map(span, prompts))
    return max(sum(start <= at <= end for start, end in spans) for at, _ in spans)


LAPROX = ("--enable-laprox", "--laprox-budget", "0.1")


@pytest.mark.parametrize(
    "flags, core, expected",
    [((), "rust", 2), (LAPROX, "rust", 8), (LAPROX, "python", 8)],
    ids=["stock", "laprox", "laprox-python-core"],
)
def test_freed_slots_admit_others(
    seed: int, figures: list[str], flags: tuple[str, ...], core: str, expected: int
) -> None:
    prompts = [sample.prompt_ids() + [3] * 20 for sample in Task(seed).batch(8, 1000)]
    prompts = [ids[:1000] for ids in prompts]
    assert {len(ids) for ids in prompts} == {1000}
    with Server(*flags, tokens=2600, SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND=core) as server:
        peak = peak_concurrency(server, prompts, 100)
    figures.append(
        f"8 prompts of 1,000 tokens in 2,600 slots, {' '.join(flags) or 'stock'}, {core} core: {peak} at once"
    )
    assert peak == expected


def test_without_a_radix_cache(seed: int) -> None:
    prompts = [sample.prompt_ids() for sample in Task(seed).batch(6, 900)]
    flags = (
        "--enable-laprox",
        "--laprox-budget",
        "0.1",
        "--disable-radix-cache",
        "--chunked-prefill-size",
        "400",
    )
    with Server(*flags, tokens=6000) as server:
        alone = [server.generate(ids, 24) for ids in prompts]
        assert all(facts(reply)["pruned"] for reply in alone)
        mixed: list[dict[str, Any]] = [
            {"ids": ids, "tokens": 24, "laprox": {"enabled": i % 2 == 0}} for i, ids in enumerate(prompts)
        ]
        together = server.generate_all(mixed, at_once=6)
        assert [facts(reply)["pruned"] for reply in together] == [i % 2 == 0 for i in range(6)]
        assert [r["output_ids"] for r in together[::2]] == [r["output_ids"] for r in alone[::2]]
        assert server.laprox()["available_slots"] == 6000
