"""Memory that LaProx needs beside the KV pool, for the worst that a server can be asked to run."""

from typing import Any

from laprox_kernels import SCORE_BYTES
from laprox_sglang.options.server import Config
from laprox_sglang.options.values import budget_slots
from laprox_sglang.scorers.criticalkv import BLOCK
from laprox_sglang.views.view import SPAN

# Prompts of one prefill batch, where the server's flags set no bound: each has a window of queries saved.
PREFILL_REQUESTS = 64


def graph_rows(args: Any) -> int:
    """Rows of the largest decode graph."""
    decode = args.cuda_graph_config.decode
    if decode.backend == "disabled" or not decode.bs:
        return 0
    largest = max(decode.bs)
    return min(largest, args.max_running_requests or largest)


def windows(config: Config, args: Any) -> int:
    """Prompts of one prefill batch that can be pruned: each computes its window, whatever is cached."""
    tokens = max(args.max_prefill_tokens or 0, args.chunked_prefill_size or 0)
    # One more: a prompt that comes in chunks keeps what earlier ones computed.
    return min(args.prefill_max_requests or PREFILL_REQUESTS, -(-tokens // config.longest_window)) + 1


def largest_view(config: Config, context: int) -> int:
    """Slots of the largest view: a request may ask for as many as the server grants to the whole context."""
    return max(budget_slots(config.budget, context), config.longest_window + config.sink_tokens)


def needs(config: Config, model: Any, args: Any, itemsize: int, available: int) -> dict[str, int]:
    """Bytes by purpose.

    Args:
        model: SGLang's ``ModelConfig``.
        args: a resolved view of SGLang's ``ServerArgs``.
        itemsize: bytes of one number in the KV pool.
        available: bytes that the KV pool could have at most.
    """
    layers, dim, context = model.num_hidden_layers, model.head_dim, model.context_len
    heads, cells = model.num_attention_heads, layers * model.get_num_kv_heads(1)
    slots = available // (cells * 2 * dim * itemsize)
    longest = min(context, slots, args.max_total_tokens or slots)
    window = config.longest_window
    kept = min(largest_view(config, context), longest) * cells
    # Graphs have static copies of their rows; without them each step makes its own.
    rows = graph_rows(args) or args.max_running_requests or 0
    parts = {
        "scores": 4 * cells * longest + SCORE_BYTES,
        "decode rows": rows * (4 * (context + 16) + 8 * (SPAN + cells + 1)),
        "Gram matrices": (4 + itemsize) * layers * heads * dim**2,
        # The last window is laid out anew to be scored.
        "window queries": (windows(config, args) + 1) * layers * window * heads * dim * itemsize,
        # The saved K and V of the kept cells, their indices, and their tokens.
        "packing": kept * (2 * dim * itemsize + 16),
    }
    if not config.method.fused:
        # Of one layer in float32: logits and attention; K, V and what is made of them; W_O, and a block of
        # values behind it.
        positions = 2 * heads * (window + 1) + 6 * model.get_num_kv_heads(1) * dim
        weights = 2 * (heads * dim + BLOCK) * model.hidden_size
        parts["layer by layer"] = 4 * (longest * positions + weights)
    return parts
