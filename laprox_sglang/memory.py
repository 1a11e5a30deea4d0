"""Memory that LaProx needs beside the KV pool, for the worst that a server can be asked to run."""

from typing import Any

from laprox_sglang.config import Config, budget_slots
from laprox_sglang.segment import SPAN


def score_tokens(longest: int, args: Any) -> int:
    """Private tokens that one batch can prune: a chunked prompt's, and what else fits into the batch.

    Args:
        longest: tokens of the longest prompt that context and KV pool allow.
        args: SGLang's ``ServerArgs``.
    """
    return longest + max(args.max_prefill_tokens or 0, args.chunked_prefill_size or 0)


def graph_rows(args: Any) -> int:
    """Rows of the largest decode graph."""
    decode = args.cuda_graph_config.decode
    if decode.backend == "disabled" or not decode.bs:
        return 0
    largest = max(decode.bs)
    return min(largest, args.max_running_requests or largest)


def needs(config: Config, model: Any, args: Any, itemsize: int, available: int) -> dict[str, int]:
    """Bytes by purpose.

    Args:
        model: SGLang's ``ModelConfig``.
        args: SGLang's ``ServerArgs``.
        itemsize: bytes of one number in the KV pool.
        available: bytes that the KV pool could have at most.
    """
    layers, dim, context = model.num_hidden_layers, model.head_dim, model.context_len
    heads, cells = model.num_attention_heads, layers * model.get_num_kv_heads(1)
    slots = available // (cells * 2 * dim * itemsize)
    longest = min(context, slots, args.max_total_tokens or slots)
    protected = config.window + config.sink_tokens
    # A request may ask for as many tokens as the server grants to the whole context.
    kept = min(max(budget_slots(config.budget, context), protected), longest) * cells
    return {
        "scores": 4 * cells * score_tokens(longest, args),
        "decode graphs": graph_rows(args) * (4 * (context + 16) + 8 * (SPAN + cells + 1)),
        "projected values": 4 * layers * heads * dim**2,
        "window queries": layers * config.window * heads * dim * itemsize,
        # The saved K and V of the kept cells, and their indices.
        "packing": kept * (2 * dim * itemsize + 8),
    }
