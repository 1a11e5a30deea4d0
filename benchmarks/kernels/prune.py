"""The kernels that prune a prompt, as they follow its prefill: each alone beside torch, and all in turn."""

import torch

import laprox_kernels as kernels
from benchmarks.kernels.bench import (
    CELLS,
    DIM,
    DTYPE,
    HEADS,
    LAYERS,
    POOLS,
    Q_HEADS,
    SCALE,
    Bench,
    cell_bytes,
    random_pool,
)
from laprox_sglang.options.server import Config
from laprox_sglang.scorers.allocators import keep

# What is served where nothing else is asked for.
DEFAULTS = Config()
SINKS, POOLING, SHARE = DEFAULTS.sink_tokens, DEFAULTS.method.pooling, 0.05

# Every timed function is called before its loop goes on.
# ruff: noqa: B023


def score_work(tokens: int, window: int, of_cell: int) -> tuple[float, float]:
    """Bytes and operations of scoring: keys twice, values once; two passes over the logits, and one D x D
    form per value and query head."""
    moved = LAYERS * tokens * HEADS * of_cell * 3
    return moved, LAYERS * Q_HEADS * tokens * (2 * 2 * window * DIM + 2 * DIM * DIM)


def bench_prune(bench: Bench) -> None:
    for what, dtype in POOLS.items():
        bench_pool(bench, dtype, what)
        torch.cuda.empty_cache()


def bench_pool(bench: Bench, dtype: torch.dtype, what: str) -> None:
    """All of it over a pool of one dtype; ``what`` stands behind the cases."""
    window = DEFAULTS.longest_window
    lengths = [32_768] if bench.quick else [1_024, 8_192, 32_768, 131_072]
    keys, values = random_pool(round((1 + SHARE) * lengths[-1]), dtype)
    scale = torch.full((LAYERS,), SCALE, device="cuda")
    every = torch.randperm(len(keys), device="cuda")
    queries = torch.randn(LAYERS, window, Q_HEADS, DIM, dtype=DTYPE, device="cuda")
    weights = torch.randn(Q_HEADS, DIM, Q_HEADS * DIM, device="cuda") / 64
    gram = (weights @ weights.mT).repeat(LAYERS, 1, 1, 1)
    for tokens in lengths:
        size = round(SHARE * tokens)
        slots, others = every[:tokens], every[tokens:][:size]
        scores = torch.empty(LAYERS, HEADS, tokens, device="cuda")
        scoring = score_work(tokens, window, cell_bytes(keys))
        indices = 8 * CELLS * size
        packing = CELLS * size * 2 * 2 * cell_bytes(keys) + indices

        def score() -> None:
            kernels.score(queries, keys, values, slots, 0, gram, scale, SINKS, POOLING, scores)

        def score_layer() -> None:
            given = (queries[:1], keys, values, slots, 0, gram[:1], scale, SINKS, POOLING, scores[:1])
            kernels.reference.score(*given)

        def select() -> tuple[torch.Tensor, torch.Tensor]:
            return keep(scores, size, DEFAULTS.method.allocation, SINKS + window)

        def topk() -> None:
            # It breaks ties as it likes; sorted indices are the least that packing needs of it.
            scores.flatten().topk(CELLS * size, sorted=False).indices.sort()

        def prune(view: torch.Tensor, staged: bool) -> None:
            score()
            kernels.pack(keys, values, slots, select()[0], view, staged)

        case = f"{tokens} tokens, {SHARE:.0%} kept{what}"
        torch_ms = bench.time(score_layer) * LAYERS
        bench.record("prune", f"{case}, scoring", bench.time(score), *scoring, "torch", torch_ms)
        # The floor's cells stay at +inf from turn to turn: as much to read, and to write.
        selecting, topk_ms = scores.nbytes + indices, bench.time(topk)
        bench.record(
            "prune", f"{case}, selecting", bench.time(select), selecting, 0, "torch.topk, sorted", topk_ms
        )
        kept, _ = select()
        source = slots[kept % tokens] * CELLS + kept // tokens
        for name, staged, view in (("apart", False, others), ("staged", True, slots[:size])):
            target = (view[:, None] * CELLS + torch.arange(CELLS, device="cuda")).flatten()

            def by_index() -> None:
                for pool in (keys, values):
                    # Torch writes no fp8 by index.
                    flat = pool.view(torch.uint8).view(-1, cell_bytes(pool))
                    flat.index_copy_(0, target, flat.index_select(0, source))

            pack_ms = bench.time(lambda: kernels.pack(keys, values, slots, kept, view, staged))
            # The saved cells of a staged packing are written and read once more: no part of the floor.
            against = ("index_select + index_copy_", bench.time(by_index))
            bench.record("prune", f"{case}, packing {name}", pack_ms, packing, 0, *against)
            moved = scoring[0] + 2 * scores.nbytes + indices + packing
            ms = bench.time(lambda: prune(view, staged))
            bench.record("prune", f"{case}, all three, {name}", ms, moved, scoring[1])
