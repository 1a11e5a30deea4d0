"""What a server can hold of one kind of requests, whole and with views, and whether views pay."""

from dataclasses import replace
from types import SimpleNamespace

import msgspec

from laprox_sglang.cli import CommandError
from laprox_sglang.cli.card import MAX_PREFILL_TOKENS, Card
from laprox_sglang.cli.model import Model
from laprox_sglang.cli.side import Room, Side, side
from laprox_sglang.cli.verdict import advice, no_room, verdict
from laprox_sglang.options.server import Config
from laprox_sglang.views.capacity import Load, plan_of_load, viewed, whole
from laprox_sglang.views.memory import PREFILL_REQUESTS, needs


class Outlook(msgspec.Struct, frozen=True):
    """
    Attributes:
        reason: why such prompts stay whole; None if they are pruned.
        compared: requests of the decode step whose reads are compared.
        graph_rows: requests of the largest decode graph.
        verdict: when it pays, in words.
        advice: flags for the server with LaProx.
    """

    weights: int
    reason: str | None
    stock: Side
    laprox: Side
    compared: int
    graph_rows: int
    verdict: list[str]
    advice: dict[str, str]


def outlook(
    model: Model,
    card: Card,
    config: Config,
    load: Load,
    itemsizes: tuple[int, int],
    concurrency: int | None = None,
    fraction: float | None = None,
) -> Outlook:
    """
    Args:
        itemsizes: bytes of a number in the KV pool, of stock and of LaProx.
        concurrency: requests that come at once; None for as many as there is room for.
        fraction: ``--mem-fraction-static`` of both servers, where it is given.

    Raises:
        CommandError: the weights leave no room for a KV pool.
    """
    plan = plan_of_load(config, load)
    rows = card.graph_rows if concurrency is None else min(card.graph_rows, concurrency)
    fractions = [fraction or card.static_fraction(rows, kinds) for kinds in (1, 2)]
    stock_bytes, our_bytes = (card.pool_bytes(share, model.weights) for share in fractions)
    if our_bytes <= 0:
        raise CommandError(
            f"{model.weights / 1e9:.1f} GB of weights leave no room for a KV pool on {card.memory:g} GiB"
        )

    def reserve(context: int) -> dict[str, int]:
        longest = replace(model, context_len=context)
        return needs(config, longest, flags(card, rows), itemsizes[1], our_bytes)

    reserved = reserve(model.context_len)
    rooms = (
        Room(model, stock_bytes, itemsizes[0], whole(load)),
        Room(model, max(0, our_bytes - sum(reserved.values())), itemsizes[1], viewed(load, plan)),
    )
    compared = max(1, min(rooms[0].requests, rooms[1].requests, concurrency or rooms[0].requests))
    stock = side(fractions[0], {}, rooms[0], compared, load.prompt + load.output // 2)
    laprox = side(fractions[1], reserved, rooms[1], compared, plan.start + plan.slots + load.output // 2)
    running = min(laprox.requests, concurrency or laprox.requests)
    if running:
        lines = verdict(plan.reason, load, stock, laprox, compared, concurrency)
    else:
        lines = [no_room(laprox, rooms[1].hold)]
    shorter = shortest_context(load)
    if 2 * shorter <= model.context_len:
        lines.append(
            f"LaProx reserves for the longest request that the server takes: with --context-length {shorter} "
            f"{sum(reserve(shorter).values()) / 1e9:.2f} GB, not {sum(reserved.values()) / 1e9:.2f}."
        )
    given = advice(card, running, fraction) if running else {}
    return Outlook(model.weights, plan.reason, stock, laprox, compared, rows, lines, given)


def shortest_context(load: Load) -> int:
    """The power of two that such a request fits into."""
    return int(1 << (load.prompt + load.output - 1).bit_length())


def flags(card: Card, rows: int) -> SimpleNamespace:
    """What ``needs`` reads of SGLang's arguments, as a server on this card has them."""
    return SimpleNamespace(
        max_prefill_tokens=MAX_PREFILL_TOKENS,
        chunked_prefill_size=card.chunk,
        prefill_max_requests=PREFILL_REQUESTS,
        max_running_requests=None,
        max_total_tokens=None,
        cuda_graph_config=SimpleNamespace(decode=SimpleNamespace(backend="full", bs=[rows])),
    )
