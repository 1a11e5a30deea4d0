"""The kernels that prune a prompt: score, floor, select, pack, each alone and all in turn."""

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
from laprox_sglang.options.server import Config
from laprox_sglang.scorers.allocators import keep

# What is served where nothing else is asked for.
DEFAULTS = Config()
SINKS, POOLING = DEFAULTS.sink_tokens, DEFAULTS.method.pooling

# Every timed function is called before its loop goes on.
# ruff: noqa: B023


def score_inputs(window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and Gram matrices of all layers, of random numbers."""
    queries = torch.randn(LAYERS, window, Q_HEADS, DIM, dtype=DTYPE, device="cuda")
    weights = torch.randn(Q_HEADS, DIM, Q_HEADS * DIM, device="cuda") / 64
    return queries, (weights @ weights.mT).repeat(LAYERS, 1, 1, 1)


def score_work(tokens: int, window: int) -> tuple[float, float]:
    """Bytes and operations of scoring: keys twice, values once; two passes over the logits, and one D x D
    form per value and query head."""
    moved = LAYERS * tokens * HEADS * CELL_BYTES * 3
    return moved, LAYERS * Q_HEADS * tokens * (2 * 2 * window * DIM + 2 * DIM * DIM)


def bench_score(bench: Bench) -> None:
    for tokens, window in [(32_768, 32)] if bench.quick else [(8_192, 32), (32_768, 32), (32_768, 64)]:
        keys, values = random_pool(tokens)
        row = torch.randperm(tokens, device="cuda")
        queries, gram = score_inputs(window)
        out = torch.empty(LAYERS, HEADS, tokens, device="cuda")

        def all_layers() -> None:
            kernels.score(queries, keys, values, row, 0, gram, SCALE, SINKS, POOLING, out)

        def reference_layer() -> None:
            given = (queries[:1], keys, values, row, 0, gram[:1], SCALE, SINKS, POOLING, out[:1])
            kernels.reference.score(*given)

        ms = bench.time(all_layers)
        graph_ms = bench.time(all_layers, graph=True)
        torch_ms = bench.time(reference_layer) * LAYERS
        case = f"{LAYERS} layers, {tokens} tokens, W {window}"
        bench.record("score", case, ms, *score_work(tokens, window), "torch", torch_ms)
        bench.record("score", case + ", in a graph", graph_ms, *score_work(tokens, window))


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
        ms = bench.time(lambda: kernels.select(scores, k // LAYERS, LAYERS))
        bench.record("select", case + ", of each layer", ms, moved)


def bench_floor(bench: Bench) -> None:
    scores = torch.randn(LAYERS, HEADS, 32_768, device="cuda").mul_(2).exp_().div_(1e8)
    scores[..., -32:] = float("inf")
    for share in (0.05,) if bench.quick else (0.05, 0.2):
        count = round(share * 32_768)
        # Later turns find the same cells at +inf: as much to read, and to write.
        ms = bench.time(lambda: kernels.floor(scores, count))
        topk_ms = bench.time(lambda: scores.scatter_(-1, scores.topk(count).indices, float("inf")))
        case = f"{CELLS} rows of 32,768, {share:.0%} of each"
        bench.record(
            "floor", case, ms, scores.nbytes + 4 * CELLS * count, 0, "torch.topk, scattered", topk_ms
        )


def bench_pack(bench: Bench) -> None:
    tokens, longest = 32_768, 6_554
    keys, values = random_pool(tokens + longest)
    every = torch.randperm(tokens + longest, device="cuda")
    slots, others = every[:tokens], every[tokens:]
    for share in (0.05,) if bench.quick else (0.05, 0.2):
        size = round(share * tokens)
        kept, _ = kernels.select(torch.rand(LAYERS, HEADS, tokens, device="cuda"), CELLS * size)
        source = slots[kept % tokens] * CELLS + kept // tokens
        for name, staged, view in (("apart", False, others[:size]), ("staged", True, slots[:size])):
            target = (view[:, None] * CELLS + torch.arange(CELLS, device="cuda")).flatten()

            def by_index() -> None:
                for pool in (keys, values):
                    flat = pool.view(-1, DIM)
                    flat.index_copy_(0, target, flat.index_select(0, source))

            ms = bench.time(lambda: kernels.pack(keys, values, slots, kept, view, staged))
            # The saved cells of a staged packing are written and read once more: no part of the floor.
            moved = kept.numel() * 2 * 2 * CELL_BYTES + kept.nbytes
            case = f"{tokens} tokens, {share:.0%} kept, {name}"
            bench.record("pack", case, ms, moved, 0, "index_select + index_copy_", bench.time(by_index))


def bench_prune(bench: Bench) -> None:
    """Scoring, selecting and packing as they follow a prompt's prefill."""
    window, share = DEFAULTS.longest_window, 0.05
    lengths = [32_768] if bench.quick else [1_024, 8_192, 32_768, 131_072]
    keys, values = random_pool(round((1 + share) * lengths[-1]))
    every = torch.randperm(len(keys), device="cuda")
    queries, gram = score_inputs(window)
    for tokens in lengths:
        size = round(share * tokens)
        slots, others = every[:tokens], every[tokens:][:size]
        scores = torch.empty(LAYERS, HEADS, tokens, device="cuda")
        scoring = score_work(tokens, window)
        indices = 8 * CELLS * size
        packing = CELLS * size * 2 * 2 * CELL_BYTES + indices

        def score() -> None:
            kernels.score(queries, keys, values, slots, 0, gram, SCALE, SINKS, POOLING, scores)

        def select() -> tuple[torch.Tensor, torch.Tensor]:
            return keep(scores, size, DEFAULTS.method.allocation, SINKS + window)

        def prune(view: torch.Tensor, staged: bool) -> None:
            score()
            kernels.pack(keys, values, slots, select()[0], view, staged)

        case = f"{tokens} tokens, {share:.0%} kept"
        bench.record("prune", f"{case}, scoring", bench.time(score), *scoring)
        # The floor's cells stay at +inf from turn to turn: as much to read, and to write.
        select_ms = bench.time(select)
        bench.record("prune", f"{case}, selecting", select_ms, scores.nbytes + indices)
        kept, _ = select()
        for name, staged, view in (("apart", False, others), ("staged", True, slots[:size])):
            pack_ms = bench.time(lambda: kernels.pack(keys, values, slots, kept, view, staged))
            bench.record("prune", f"{case}, packing {name}", pack_ms, packing)
            moved = scoring[0] + 2 * scores.nbytes + indices + packing
            ms = bench.time(lambda: prune(view, staged))
            bench.record("prune", f"{case}, all three, {name}", ms, moved, scoring[1])
