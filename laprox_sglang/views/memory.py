"""Memory that LaProx needs beside the KV pool, for the worst that a server can be asked to run."""

from typing import NamedTuple

from laprox_kernels import placing_bytes, score_bytes
from laprox_sglang.options.server import Config
from laprox_sglang.options.values import budget_slots
from laprox_sglang.ports import ModelShape, ServerArgs
from laprox_sglang.projection import reading_bytes
from laprox_sglang.ranks import heads_of_rank
from laprox_sglang.scorers.criticalkv import BLOCK
from laprox_sglang.views.view import SPAN

# Prompts of one prefill batch, where the server's flags set no bound: each has a window of queries saved.
PREFILL_REQUESTS = 64
# SGLang's bounds of the requests that run at once, where no flag sets one.
FEWEST_RUNNING, MOST_RUNNING = 2048, 4096


class Itemsizes(NamedTuple):
    """Bytes of a number.

    Attributes:
        pool: in the KV pool.
        model: in the model, whose queries and Gram matrices fp8 KV leaves as they are.
    """

    pool: int
    model: int


# Bytes that a view which may shrink keeps of a cell: its score and its position.
REMEMBERED = 8
# Bytes for a cell whose layer and position go through a sum, a sort and an index by it.
ORDERED = 36


def graph_rows(args: ServerArgs) -> int:
    """Rows of the largest decode graph."""
    decode = args.cuda_graph_config.decode
    if decode.backend == "disabled" or not decode.bs:
        return 0
    largest = max(decode.bs)
    return min(largest, args.max_running_requests or largest)


def table(rows: int, columns: int, cells: int) -> int:
    """Bytes of what ``DecodeBatch`` lays out for a step: slots ``[rows, columns]``, and where the views and
    their cells lie among them."""
    return rows * (4 * columns + 8 * (2 + SPAN + cells + 1))


def most_running(slots: int, context: int) -> int:
    """Default of ``--max-running-requests``: ``KVCacheConfigurator.resolve_max_num_reqs``, which SGLang asks
    when the KV pool has its size."""
    return max(min(slots * 512 // context, MOST_RUNNING), FEWEST_RUNNING)


def windows(config: Config, args: ServerArgs) -> int:
    """Prompts of one prefill batch that can be pruned: each computes its window, whatever is cached."""
    tokens = max(args.max_prefill_tokens or 0, args.chunked_prefill_size or 0)
    # One more: a prompt that comes in chunks keeps what earlier ones computed.
    return min(args.prefill_max_requests or PREFILL_REQUESTS, -(-tokens // config.longest_window)) + 1


def largest_view(config: Config, context: int) -> int:
    """Slots of the largest view: a request may ask for as many as the server grants to the whole context."""
    granted = max(budget_slots(config.budget, context), budget_slots(config.most, context))
    return max(granted, config.longest_window + config.sink_tokens)


def slot_bytes(model: ModelShape, ranks: int, itemsize: int) -> int:
    """Of a slot of the KV pool: K and V of a token in all layers and heads of a rank."""
    return 2 * model.num_hidden_layers * heads_of_rank(model, ranks).kv * model.head_dim * itemsize


def needs(
    config: Config, model: ModelShape, ranks: int, args: ServerArgs, itemsizes: Itemsizes, available: int
) -> dict[str, int]:
    """Bytes by purpose, on every rank the same: the KV pools must be of one size.

    Args:
        model: SGLang's ``ModelConfig``.
        ranks: how many share the heads of a layer.
        args: a resolved view of SGLang's ``ServerArgs``.
        available: bytes that the KV pool could have at most, on the rank with the least.
    """
    layers, dim, context = model.num_hidden_layers, model.head_dim, model.context_len
    heads, kv_heads = heads_of_rank(model, ranks)
    cells = layers * kv_heads
    slots = available // slot_bytes(model, ranks, itemsizes.pool)
    slots = min(slots, args.max_total_tokens or slots)
    longest = min(context, slots)
    window = config.longest_window
    kept = min(largest_view(config, context), longest) * cells
    # A step without a graph, or with more rows than the largest one, makes a table as long as its longest
    # row; those of the graphs stay beside it.
    running = min(args.max_running_requests or most_running(slots, context), slots // 2)
    rows = table(graph_rows(args), context + 16, cells) + table(running, longest, cells)
    parts = {
        "scores": 4 * cells * longest + score_bytes(heads, kv_heads, longest),
        "decode rows": rows,
        # After a weight update they are made anew, from a part of W_O at a time.
        "Gram matrices": (4 + itemsizes.model) * layers * heads * dim**2
        + reading_bytes(heads, dim, model.hidden_size),
        # The last window is laid out anew to be scored.
        "window queries": (windows(config, args) + 1) * layers * window * heads * dim * itemsizes.model,
        # The saved K and V of the kept cells, their indices, and their tokens.
        "packing": kept * (2 * dim * itemsizes.pool + 16),
    }
    if config.elastic:
        # Where all of the pool were views that may shrink.
        parts["kept scores"] = REMEMBERED * cells * slots
        if config.method.allocation.floor:
            parts["scores"] += 4 * cells * longest
    if ranks > 1:
        # Positions that a request asks for come from all ranks, and are put in order; nothing is packed then.
        parts["packing"] = max(parts["packing"], kept * ranks * ORDERED)
        # What each says it kept of every token, twice, on its way through the sum.
        parts["ranks"] = 8 * ranks * (longest + cells)
        if config.method.allocation.places(ranks):
            parts["ranks"] += placing_bytes(layers, kv_heads * longest)
    if not config.method.fused:
        # Of one layer in float32: logits and attention; K, V and what is made of them; W_O, and a block of
        # values behind it.
        positions = 2 * heads * (window + 1) + 6 * kv_heads * dim
        weights = 2 * (heads * dim + BLOCK) * model.hidden_size
        parts["layer by layer"] = 4 * (longest * positions + weights)
    return parts
