"""When LaProx pays, in words, and the flags to start it with."""

import math

from laprox_sglang.views.capacity import REASONS, SHORT_ANSWER, Hold, Load, faster_steps
from laprox_sglang.views.plan import Plan
from laprox_tools.plan.estimate import Estimate
from laprox_tools.plan.sglang_defaults import defaults, laprox_static_fraction

# Scoring a prompt takes about as long as so many decode steps over all of it: 5.91 ms of 32,768 tokens at 8B
# shapes, whose K and V an H100 reads in 1.3 ms (benchmarks/results/kernels-prune-h100.json).
SCORING_STEPS = 5
# Decode steps that are shorter by less than this are not worth a view.
FASTER = 1.1


def does_not_fit(laprox: Estimate, hold: Hold) -> str:
    return (
        f"Does not fit: LaProx reserves {sum(laprox.reserved.values()) / 1e9:.2f} GB, which leaves "
        f"{laprox.slots:,} slots; one request needs {hold.common + hold.entry:,} while it comes in."
    )


def when_it_pays(
    reason: str | None,
    load: Load,
    stock: Estimate,
    laprox: Estimate,
    compared: int,
    concurrency: int | None,
    itemsize: int,
) -> list[str]:
    """When LaProx pays for such requests, one line a reason.

    Args:
        itemsize: bytes of a number in the KV pools.
    """
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
    faster = faster_steps(itemsize)
    steps = SCORING_STEPS * faster
    if load.output < SHORT_ANSWER * faster:
        lines.append(
            f"No gain by speed: scoring a prompt takes about as long as {steps} decode steps over "
            f"it, and answers have {load.output} tokens."
        )
    elif ratio >= FASTER:
        lines.append(
            f"Pays by speed: {reads}, not {stock.step_bytes / 1e9:.1f} GB: up to {ratio:.1f} times as fast."
        )
    else:
        lines.append(f"Little gain by speed: {reads}, {stock.step_bytes / 1e9:.1f} GB whole.")
    return lines


def two_budgets(plan: Plan, promised: int, roomy: int) -> str:
    """
    Args:
        promised, roomy: requests at once with what views are promised, and with all that they may have.
    """
    return (
        f"Two budgets: up to {roomy:,} at once have views of {plan.most:,} slots; with more these shrink, "
        f"down to {plan.least:,} at {promised:,}."
    )


def when_a_host_tier_pays(
    load: Load, laprox: Estimate, hold: Hold, running: int, conversations: int
) -> tuple[str, dict[str, str]]:
    """In one line, and the flags for it.

    Args:
        running: requests at once.
        conversations: histories of one prompt's length that are to come back, those of running ones included.
    """
    fit = hold.histories(laprox.slots, running, load.prompt)
    beside = (
        f"beside the views of {running:,} the pool has room for {fit:,} histories of {load.prompt:,} tokens"
    )
    if fit >= conversations:
        return f"A host tier gains nothing: {beside}.", {}
    size = math.ceil((conversations - fit) * load.prompt * laprox.slot_bytes / 1e9)
    line = (
        f"A host tier pays: {beside}, so {conversations - fit:,} of {conversations:,} would be computed "
        f"again at their next turn; {size:,} GB of host memory hold these."
    )
    return line, {
        "--enable-hierarchical-cache": "",
        "--hicache-write-policy": "write_back",
        "--hicache-size": str(size),
    }


def flags_to_set(memory: float, running: int, kv_dtype: str, fraction: float | None) -> dict[str, str]:
    """Flags of the server with LaProx, for ``running`` requests at once."""
    rows = min(running, 2 * defaults(memory).graph_rows)
    return {
        "--max-running-requests": str(running),
        "--cuda-graph-max-bs-decode": str(rows),
        "--mem-fraction-static": f"{fraction or laprox_static_fraction(memory, rows):g}",
        **({"--kv-cache-dtype": kv_dtype} if kv_dtype != "auto" else {}),
    }
