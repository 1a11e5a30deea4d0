"""What a server can hold of one kind of requests, whole and with views, and whether views pay."""

from dataclasses import replace
from types import SimpleNamespace

import msgspec

from laprox_sglang.cli import CommandError
from laprox_sglang.cli.card import MAX_PREFILL_TOKENS, Card, most_running
from laprox_sglang.cli.model import Model
from laprox_sglang.config import Config
from laprox_sglang.views.capacity import (
    REASONS,
    SHORT_ANSWER,
    Hold,
    Load,
    plan_of_load,
    viewed,
    whole,
)
from laprox_sglang.views.memory import PREFILL_REQUESTS, needs

# Decode steps that are shorter by less than this are not worth a view.
FASTER = 1.1


class Side(msgspec.Struct, frozen=True):
    """A server of one kind, stock or LaProx.

    Attributes:
        fraction: ``--mem-fraction-static``.
        reserved: bytes that LaProx needs, by purpose.
        slots: size of the KV pool.
        slot_bytes: K and V of one token.
        held: slots of one request at its last step, beside what all of them have in common.
        requests: how many run at once.
        step_bytes: read by a decode step of ``Outlook.compared`` requests, weights included.
    """

    fraction: float
    reserved: dict[str, int]
    slots: int
    slot_bytes: int
    held: int
    requests: int
    step_bytes: int


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
    reserved = needs(config, model, flags(card, rows), itemsizes[1], our_bytes)
    pools = stock_bytes, max(0, our_bytes - sum(reserved.values()))
    holds = whole(load), viewed(load, plan)
    sizes = [model.slot_bytes(itemsize) for itemsize in itemsizes]
    slots = [pool // size for pool, size in zip(pools, sizes, strict=True)]
    fits = [requests(hold, count, model) for hold, count in zip(holds, slots, strict=True)]
    compared = max(1, min(*fits, concurrency or fits[0]))
    lengths = load.prompt, plan.start + plan.slots
    steps = [
        model.weights + compared * (length + load.output // 2) * size
        for length, size in zip(lengths, sizes, strict=True)
    ]
    stock, laprox = (
        Side(fractions[i], (reserved if i else {}), slots[i], sizes[i], holds[i].each, fits[i], steps[i])
        for i in (0, 1)
    )
    if not laprox.requests:
        lines, running = [no_room(laprox, holds[1])], 0
    else:
        lines = verdict(plan.reason, load, stock, laprox, compared, concurrency)
        running = min(laprox.requests, concurrency or laprox.requests)
    shorter = shortest_context(load)
    if 2 * shorter <= model.context_len:
        less = needs(config, replace(model, context_len=shorter), flags(card, rows), itemsizes[1], our_bytes)
        lines.append(
            f"LaProx reserves for the longest request that the server takes: with --context-length {shorter} "
            f"{sum(less.values()) / 1e9:.2f} GB, not {sum(reserved.values()) / 1e9:.2f}."
        )
    flags_given = advice(card, running, fraction) if running else {}
    return Outlook(model.weights, plan.reason, stock, laprox, compared, rows, lines, flags_given)


def shortest_context(load: Load) -> int:
    """The power of two that such a request fits into."""
    return int(1 << (load.prompt + load.output - 1).bit_length())


def no_room(laprox: Side, hold: Hold) -> str:
    return (
        f"Does not fit: LaProx reserves {sum(laprox.reserved.values()) / 1e9:.2f} GB, which leaves "
        f"{laprox.slots:,} slots; one request needs {hold.common + hold.entry:,} while it comes in."
    )


def requests(hold: Hold, slots: int, model: Model) -> int:
    return min(hold.requests(slots), most_running(slots, model.context_len))


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


def verdict(
    reason: str | None, load: Load, stock: Side, laprox: Side, compared: int, concurrency: int | None
) -> list[str]:
    """When LaProx pays for such requests, one line a reason."""
    if reason is not None:
        return [f"Does not pay: such prompts stay whole, for {REASONS[reason]}."]
    lines = []
    if concurrency is None or concurrency > stock.requests:
        lines.append(
            f"Pays by room: whole, {stock.requests:,} of these requests fill the pool; with views "
            f"{laprox.requests:,} run at once."
            if laprox.requests > stock.requests
            else f"No more room: {laprox.requests:,} requests with views, {stock.requests:,} whole."
        )
    else:
        lines.append(f"No gain by room: the pool holds all {concurrency:,} requests whole as well.")
    reads = f"a decode step of {compared:,} reads {laprox.step_bytes / 1e9:.1f} GB"
    ratio = stock.step_bytes / laprox.step_bytes
    if load.output < SHORT_ANSWER:
        lines.append(
            f"No gain by speed: scoring a prompt takes about as long as 6 decode steps over it, and answers "
            f"have {load.output} tokens."
        )
    elif ratio >= FASTER:
        lines.append(
            f"Pays by speed: {reads}, not {stock.step_bytes / 1e9:.1f} GB: up to {ratio:.1f} times as fast."
        )
    else:
        lines.append(f"Little gain by speed: {reads}, {stock.step_bytes / 1e9:.1f} GB whole.")
    return lines


def advice(card: Card, running: int, fraction: float | None) -> dict[str, str]:
    rows = min(running, 2 * card.graph_rows)
    return {
        "--max-running-requests": str(running),
        "--cuda-graph-max-bs-decode": str(rows),
        "--mem-fraction-static": f"{fraction or card.static_fraction(rows, 2):g}",
    }
