"""SGLang's fa3 backend over the strided pool; batches with a view are decoded by our kernel beside it."""

from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from msgspec.structs import replace
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.srt.model_executor.runner_utils import capture_mode

from fa3 import fa3_on_a_cpu, flash_attention
from fakes import (
    CONFIG,
    DIM,
    FP8,
    HEADS,
    LAYERS,
    QUERY_HEADS,
    Scheduler,
    expected_output,
    sglang_context,
    stamp,
)
from laprox_sglang.attention.backend import GraphFamilies
from test_memory_properties import check

PROMPT = [(i * i + i // 3) % 4 for i in range(40)]
OTHER = PROMPT[::-1]
EVERY_LOOP = pytest.mark.parametrize("overlap", [False, True], ids=["sync", "overlap"])
EVERY_STEP = pytest.mark.parametrize("graphs", [False, True], ids=["eager", "graphs"])
EVERY_POOL = pytest.mark.parametrize("kv_dtype", [torch.float32, FP8], ids=["float", "fp8"])


@pytest.fixture(autouse=True, scope="module")
def sglang() -> Iterator[None]:
    with sglang_context(), fa3_on_a_cpu():
        yield


def run(scheduler: Scheduler, chunk_size: int = 1024) -> Counter[str]:
    """Until nobody is left, every output of every token compared with attention by hand.

    Returns:
        How many outputs there were of prefills, of decode batches with a view and of those without one.
    """
    seen: Counter[str] = Counter()
    while not scheduler.idle():
        if scheduler.step(chunk_size) is None:
            continue
        check(scheduler)
        compressed = any(view for _, view, _, _ in scheduler.decoded)
        seen["compressed" if compressed else "whole"] += len(scheduler.decoded)
        seen["prefill"] += len(scheduler.prefilled)
        for req, view, tokens, output in (*scheduler.prefilled, *scheduler.decoded):
            expected = expected_output(view, tokens, req.rid)
            torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)
    return seen


def capture(scheduler: Scheduler) -> None:
    """As ``DecodeCudaGraphRunner`` captures: the largest batch first, each for both families."""
    for size in sorted(scheduler.captured, reverse=True):
        zeros = torch.zeros(size, dtype=torch.int64)
        batch = ForwardBatch(ForwardMode.DECODE, size, zeros, zeros, zeros + 1, zeros, size, positions=zeros)
        inputs = [torch.zeros(LAYERS, size, heads, DIM) for heads in (QUERY_HEADS, HEADS, HEADS)]
        for family in GraphFamilies.capture_labels:
            with mock.patch.object(capture_mode, "_capture_attention_variant", family):
                scheduler.backend.init_forward_metadata_out_graph(batch, in_capture=True)
                scheduler.backend.init_forward_metadata_in_graph(batch)
                scheduler.attend(batch, *inputs)


def make(graphs: bool, **options: Any) -> Scheduler:
    scheduler = Scheduler(300, stock=flash_attention, graphs=graphs, **options)
    if graphs:
        capture(scheduler)
    return scheduler


@EVERY_LOOP
@EVERY_STEP
@EVERY_POOL
@pytest.mark.parametrize("chunk_size", [11, 1024])
def test_every_token_attends_to_what_its_request_sees(overlap, graphs, kv_dtype, chunk_size):
    """Batches grow and shrink, with a view and without one; a prompt comes back, and one goes on."""
    config = replace(CONFIG, keep_prefix=6)
    scheduler = make(graphs, overlap=overlap, config=config, kv_dtype=kv_dtype)
    for i, new_tokens in enumerate([5, 9, 17]):
        scheduler.arrive([i, *PROMPT], new_tokens, enabled=i < 2)
    seen = run(scheduler, chunk_size)
    again = [scheduler.arrive([1, *PROMPT], 3), scheduler.arrive([1, *PROMPT, *OTHER[:9]], 3, enabled=False)]
    seen += run(scheduler, chunk_size)
    assert [req.cached_tokens for req in again] == [len(PROMPT) + 1 - CONFIG.window, len(PROMPT) + 1]
    assert scheduler.laprox.report.totals.prunes == 3 and min(seen.values()) >= 8 and len(seen) == 3


@EVERY_LOOP
@pytest.mark.parametrize("chunk_size", [38, 1024])
def test_a_view_is_scored_by_the_queries_that_fa3_was_given(overlap, chunk_size):
    """And fa3 leaves them as they were; with small chunks the window comes in two parts."""
    scheduler, saved = make(graphs=False, overlap=overlap), []
    make_view = scheduler.laprox.pruner.make_view

    def spy(plan: Any, row: int, queries: torch.Tensor, *rest: Any) -> Any:
        saved.append(queries.clone())
        return make_view(plan, row, queries, *rest)

    scheduler.laprox.pruner.make_view = spy
    scheduler.arrive(PROMPT, 2)
    run(scheduler, chunk_size)
    window = range(len(PROMPT) - CONFIG.window, len(PROMPT))
    expected = torch.stack([stamp(tuple(PROMPT[: i + 1]))[2] for i in window], dim=1)
    assert len(saved) == 1 and torch.equal(saved[0], expected)


@EVERY_STEP
def test_a_batch_with_a_view_asks_nothing_of_fa3(graphs, monkeypatch):
    """Its rows have columns without a slot."""
    scheduler = make(graphs)
    fa3 = type(scheduler.backend).__mro__[2]
    asked: Counter[bool] = Counter()

    def spy(name: str) -> None:
        original = getattr(fa3, name)

        def call(*given: Any, **options: Any) -> Any:
            asked[scheduler.laprox.decode.compressed] += 1
            return original(*given, **options)

        monkeypatch.setattr(fa3, name, call)

    for name in ("init_forward_metadata", "init_forward_metadata_out_graph", "forward_decode"):
        spy(name)
    scheduler.arrive(PROMPT, 4)
    seen = run(scheduler)
    scheduler.arrive(OTHER, 4, enabled=False)
    seen += run(scheduler)
    assert seen["compressed"] == seen["whole"] == 3
    assert asked[False] > 3 and not asked[True]
