"""What a server can hold of one kind of requests, whole and with views, and whether views pay."""

from dataclasses import replace

import msgspec

from laprox_sglang.options.server import Config
from laprox_sglang.views.capacity import Load, plan_of_load, viewed, whole
from laprox_sglang.views.memory import Itemsizes, needs
from laprox_tools import CommandError
from laprox_tools.plan.advice import (
    does_not_fit,
    flags_to_set,
    two_budgets,
    when_a_host_tier_pays,
    when_it_pays,
)
from laprox_tools.plan.estimate import RANKS, Estimate, Pool, estimate
from laprox_tools.plan.model_config import WEIGHT_BYTES, Model
from laprox_tools.plan.sglang_defaults import defaults, laprox_static_fraction, pool_bytes

# By ``--kv-cache-dtype``, bytes of a number in the KV pool of either server.
KV_ITEMSIZES = {"auto": WEIGHT_BYTES, "bfloat16": 2, "float16": 2, "fp8_e4m3": 1}


class Comparison(msgspec.Struct, frozen=True):
    """
    Attributes:
        reason: why such prompts stay whole; None if they are pruned.
        compared: requests of the decode step whose reads are compared.
        graph_rows: requests of the largest decode graph.
        conclusions: when it pays, in words.
        flags: to start the server with LaProx with.
    """

    weights: int
    reason: str | None
    stock: Estimate
    laprox: Estimate
    compared: int
    graph_rows: int
    conclusions: list[str]
    flags: dict[str, str]


def compare(
    model: Model,
    memory: float,
    config: Config,
    load: Load,
    kv_dtype: str = "auto",
    concurrency: int | None = None,
    fraction: float | None = None,
    conversations: int | None = None,
) -> Comparison:
    """
    Args:
        memory: of the card, GiB by its label.
        kv_dtype: of both servers, one of ``KV_ITEMSIZES``.
        concurrency: requests that come at once; None for as many as there is room for.
        fraction: ``--mem-fraction-static`` of both servers, where it is given.
        conversations: histories that are to come back, where that is known.

    Raises:
        CommandError: the weights leave no room for a KV pool.
    """
    plan = plan_of_load(config, load)
    largest = defaults(memory).graph_rows
    rows = min(largest, concurrency or largest)
    settings = defaults(memory, rows)
    fractions = (
        fraction or settings.static_fraction,
        fraction or laprox_static_fraction(memory, rows),
    )
    stock_bytes, our_bytes = (pool_bytes(memory, share, model.weights) for share in fractions)
    if our_bytes <= 0:
        raise CommandError(
            f"{model.weights / 1e9:.1f} GB of weights leave no room for a KV pool on {memory:g} GiB"
        )

    itemsizes = Itemsizes(KV_ITEMSIZES[kv_dtype], WEIGHT_BYTES)

    def reserve(context: int) -> dict[str, int]:
        longest = replace(model, context_len=context)
        return needs(config, longest, RANKS, settings.args, itemsizes, our_bytes)

    reserved = reserve(model.context_len)
    pools = (
        Pool(model, stock_bytes, itemsizes.pool, whole(load)),
        Pool(model, max(0, our_bytes - sum(reserved.values())), itemsizes.pool, viewed(load, plan)),
    )
    compared = max(1, min(pools[0].requests, pools[1].requests, concurrency or pools[0].requests))
    stock = estimate(fractions[0], {}, pools[0], compared, load.prompt + load.output // 2)
    laprox = estimate(fractions[1], reserved, pools[1], compared, plan.start + plan.least + load.output // 2)
    running = min(laprox.requests, concurrency or laprox.requests)
    if running:
        lines = when_it_pays(plan.reason, load, stock, laprox, compared, concurrency, itemsizes.pool)
    else:
        lines = [does_not_fit(laprox, pools[1].hold)]
    if running and plan.least < plan.most:
        at_most = msgspec.structs.replace(config, budget=config.most, budget_max=None)
        roomy = pools[1]._replace(hold=viewed(load, plan_of_load(at_most, load))).requests
        lines.append(two_budgets(plan, laprox.requests, roomy))
    shorter = shortest_context(load)
    if 2 * shorter <= model.context_len:
        lines.append(
            f"LaProx reserves for the longest request that the server takes: with --context-length {shorter} "
            f"{sum(reserve(shorter).values()) / 1e9:.2f} GB, not {sum(reserved.values()) / 1e9:.2f}."
        )
    given = flags_to_set(memory, running, kv_dtype, fraction) if running else {}
    if running and conversations is not None:
        line, more = when_a_host_tier_pays(
            load, laprox, pools[1].hold, min(running, conversations), conversations
        )
        lines.append(line)
        given |= more
    return Comparison(model.weights, plan.reason, stock, laprox, compared, rows, lines, given)


def shortest_context(load: Load) -> int:
    """The power of two that such a request fits into."""
    return int(1 << (load.prompt + load.output - 1).bit_length())
