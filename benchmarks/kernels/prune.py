"""The kernels that prune a prompt: score, select, pack."""

from typing import Any

import torch

import laprox_kernels as kernels
from benchmarks.kernels.bench import (
    CELL_BYTES,
    CELLS,
    DIM,
    DTYPE,
    HEADS,
    LAYERS,
    Q_HEADS,
    SCALE,
    Bench,
    random_pool,
)

# Every timed function is called before its loop goes on.
# ruff: noqa: B023


def bench_score(bench: Bench) -> None:
    for tokens, window in [(32_768, 32)] if bench.quick else [(8_192, 32), (32_768, 32), (32_768, 64)]:
        keys, values = random_pool(tokens)
        row = torch.randperm(tokens, device="cuda")
        queries = torch.randn(LAYERS, window, Q_HEADS, DIM, dtype=DTYPE, device="cuda")
        weights = torch.randn(Q_HEADS, DIM, Q_HEADS * DIM, device="cuda") / 64
        gram = weights @ weights.transpose(1, 2)
        out = torch.empty(LAYERS, HEADS, tokens, device="cuda")

        def all_layers(version: Any = kernels.score, layers: int = LAYERS) -> None:
            for layer in range(layers):
                version(
                    queries[layer], keys[:, layer], values[:, layer], row, 0, gram, SCALE, 4, 7, out[layer]
                )

        ms = bench.time(all_layers)
        graph_ms = bench.time(all_layers, graph=True)
        torch_ms = bench.time(lambda: all_layers(kernels.reference.score, 1)) * LAYERS
        # Keys twice, values once; two passes over the logits, and one D x D form per value and query head.
        moved = LAYERS * tokens * HEADS * CELL_BYTES * 3
        operations = LAYERS * Q_HEADS * tokens * (2 * 2 * window * DIM + 2 * DIM * DIM)
        case = f"{LAYERS} layers, {tokens} tokens, W {window}"
        bench.record("score", case, ms, moved, operations, "torch", torch_ms)
        bench.record("score", case + ", in a graph", graph_ms, moved, operations)


def bench_select(bench: Bench) -> None:
    scores = torch.randn(LAYERS, HEADS, 32_768, device="cuda").mul_(2).exp_().div_(1e8)
    scores[..., -32:] = float("inf")
    flat = scores.flatten()
    for share in (0.05,) if bench.quick else (0.05, 0.2):
        k = CELLS * round(share * 32_768)
        ms = bench.time(lambda: kernels.select(scores, k))
        graph_ms = bench.time(lambda: kernels.select(scores, k), graph=True)
        moved = flat.nbytes + 8 * k
        case = f"{flat.numel()} scores, {share:.0%} kept"
        # No flashinfer.top_k here: at this size 0.6.15 did not return within a minute on an H200.
        # torch.topk breaks ties as it likes; sorted indices are the least that packing needs of it.
        topk_ms = bench.time(lambda: torch.topk(flat, k, sorted=False))
        sorted_ms = bench.time(lambda: torch.topk(flat, k, sorted=False).indices.sort())
        bench.record("select", case, ms, moved, 0, "torch.topk, unsorted, ties undefined", topk_ms)
        bench.record("select", case, ms, moved, 0, "torch.topk, indices sorted", sorted_ms)
        bench.record("select", case + ", in a graph", graph_ms, moved)


def bench_pack(bench: Bench) -> None:
    tokens = 32_768
    keys, values = random_pool(tokens)
    slots = torch.randperm(tokens, device="cuda")
    for share in (0.05,) if bench.quick else (0.05, 0.2):
        first = round(share * tokens)
        kept, _ = kernels.select(torch.rand(LAYERS, HEADS, tokens, device="cuda"), CELLS * first)
        ms = bench.time(lambda: kernels.pack(keys, values, slots, kept))
        source = slots[kept % tokens] * CELLS + kept // tokens

        def by_index() -> None:
            for pool in (keys, values):
                flat = pool.view(-1, DIM)
                flat[: source.numel()] = flat.index_select(0, source)

        moved = kept.numel() * 2 * 2 * CELL_BYTES + kept.nbytes
        bench.record(
            "pack",
            f"{tokens} tokens, {share:.0%} kept",
            ms,
            moved,
            0,
            "index_select + copy",
            bench.time(by_index),
        )
