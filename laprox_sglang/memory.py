"""Memory that LaProx needs beside the KV pool, for the worst that a server can be asked to run."""

from typing import Any

from laprox_sglang.config import Config, budget_slots
from laprox_sglang.segment import SPAN


def score_tokens(context: int, args: Any) -> int:
    """Private tokens that one batch can prune: a chunked prompt's, and what else fits into the batch."""
    return context + max(args.max_prefill_tokens or 0, args.chunked_prefill_size or 0)


def graph_rows(args: Any) -> int:
    """Rows of the largest decode graph."""
    decode = args.cuda_graph_config.decode
    if decode.backend == "disabled" or not decode.bs:
        return 0
    largest = max(decode.bs)
    return min(largest, args.max_running_requests or largest)


def needs(config: Config, model: Any, args: Any, itemsize: int) -> dict[str, int]:
    """Bytes by purpose.

    Args:
        model: SGLang's ``ModelConfig``.
        args: SGLang's ``ServerArgs``.
        itemsize: bytes of one number in the KV pool.
    """
    layers, dim, context = model.num_hidden_layers, model.head_dim, model.context_len
    heads, cells = model.num_attention_heads, layers * model.get_num_kv_heads(1)
    kept = min(budget_slots(config.budget, context), context - 1) * cells
    return {
        "scores": 4 * cells * score_tokens(context, args),
        "decode graphs": graph_rows(args) * (4 * context + 8 * (SPAN + cells + 1)),
        "projected values": 4 * layers * heads * dim**2,
        "window queries": layers * config.window * heads * dim * itemsize,
        # The saved K and V of the kept cells, and their indices.
        "packing": kept * (2 * dim * itemsize + 8),
    }
