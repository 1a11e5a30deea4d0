"""What is run once at the start: a bad scorer fails here, and no prompt waits for a compiler."""

from collections.abc import Sequence
from functools import partial
from itertools import product

import torch

import laprox_kernels as kernels
from laprox_sglang.attention.decode_batch import DecodeBatch
from laprox_sglang.layers import ScoredLayer
from laprox_sglang.options.server import Config
from laprox_sglang.projection import gram_matrices, output_weights
from laprox_sglang.ranks import Ranks
from laprox_sglang.scorers import check_nested, try_out
from laprox_sglang.scorers.prompt import Prompt
from laprox_sglang.views.plan import Plan
from laprox_sglang.views.prune import Pruner


def check_scorer(config: Config, layer: ScoredLayer, device: torch.device) -> None:
    """
    Raises:
        BadScorer: what the configuration names does not score a prompt of this model.
    """
    if config.method.fused:
        return
    # A generator of its own, so that the global one, which samples tokens later, stays as it was.
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    queries = random(config.longest_window, layer.query_heads, layer.head_dim)
    keys, values = random(2, config.min_tokens, layer.kv_heads, layer.head_dim)
    gram, weights = gram_matrices([layer])[0], partial(output_weights, layer)
    for window in config.windows:
        prompt = Prompt(
            0, queries[-window:], keys, values, gram, layer.scaling, 0, config.sink_tokens,
            window + config.sink_tokens, weights,
        )  # fmt: skip
        try_out(config.scorer, config.method.scorer, prompt)
        if config.elastic:
            check_nested(config.scorer, config.method.scorer, prompt)


def no_queries(
    config: Config, layers: Sequence[ScoredLayer], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Queries ``[L, W, Hq, D]`` of zeros, shaped as those of a prompt."""
    shape = (len(layers), config.longest_window, layers[0].query_heads, layers[0].head_dim)
    return torch.zeros(shape, dtype=dtype, device=device)


def compile_kernels(
    config: Config,
    pruner: Pruner,
    decode: DecodeBatch,
    keys: torch.Tensor,
    values: torch.Tensor,
    queries: torch.Tensor,
    ranks: Ranks,
) -> None:
    """Runs all that prunes a prompt, for every kind of length, and a step of decoding: later ones find it
    compiled.

    What it writes into the pool is never read: no slot has been given out yet.

    Args:
        keys, values: ``[slots, L, H, D]``, the whole KV pool.
        queries: ``[L, W, Hq, D]``, of any content.
        ranks: those that share the heads of these layers.
    """
    layers, heads = keys.shape[1:3]
    allocation = config.method.allocation
    together = allocation.scope == "model" or allocation.places(ranks.size)
    compete = layers * heads if together else heads
    longest = min(len(keys) - 1, pruner.longest)
    for tokens in kernels.lengths_of_every_kind(compete, config.min_tokens, longest):
        row = torch.arange(1, tokens + 1, device=queries.device)
        # Triton compiles anew for a number of kept cells that is a multiple of 16: try one of either kind.
        kinds = product(config.windows, (1, min(16, tokens)), (False, True), (False, True))
        for window, slots, staged, positions in kinds:
            plan = Plan(0, tokens, slots, 0, window, None)
            pruner.pack(queries, plan, row, row[:slots], staged, positions)
    if config.elastic:
        # What is chosen from is then a view, which may be smaller than any prompt that is pruned.
        for tokens in kernels.lengths_of_every_kind(compete, config.longest_window + 1, longest):
            row = torch.arange(1, tokens + 1, device=queries.device)
            plan = Plan(0, tokens, 1, 0, config.longest_window, None, surplus=tokens - 1)
            view = pruner.pack(queries, plan, row, row, True, False)
            for slots in (min(16, tokens - 1), 1):
                if slots < view.slots:
                    view = pruner.repack(view, slots)
    decode.compile(queries[0, :1], keys, values)
