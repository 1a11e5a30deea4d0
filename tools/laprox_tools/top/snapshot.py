"""What a server said of itself at one moment."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from laprox_tools import CommandError


class Snapshot(msgspec.Struct, frozen=True):
    """
    Attributes:
        when: seconds of a clock that only goes forward.
        ranks: data-parallel ranks, which answer in any order: the numbers are of all of them together.
        slots: size of the KV pools.
        pool: slots by what they hold; their sum is ``slots``.
        surplus: slots of views beyond what was promised.
        running_tokens: what the running requests would hold if nothing had been pruned.
        outcomes: requests that ended, by what was done.
        counts: totals that only grow, whose differences are rates.
        hit_rate: share of prompt tokens that came from the prefix cache; None where the server does not say.
        from_host: the same of those that came from host memory, or a storage behind it.
        host, host_used: slots of the host tiers, and those in use.
        kept: share of the cells of each layer that was kept; empty where the server does not say.
        untested: flags of the server that were not tried with LaProx.
    """

    when: float
    model: str
    version: str
    backend: str
    budget: str
    ranks: int
    slots: int
    pool: dict[str, int]
    surplus: int
    running: int
    waiting: int
    running_tokens: int
    outcomes: dict[str, int]
    counts: dict[str, int]
    tokens_per_second: float
    hit_rate: float | None
    from_host: float | None
    host: int
    host_used: int
    kept: list[float]
    untested: list[str]


def snapshot(info: dict[str, Any], when: float) -> Snapshot:
    """Reads ``/server_info``.

    Raises:
        CommandError: it is of a server without LaProx.
    """
    states = info["internal_states"]
    ranks = [state["laprox"] for state in states if "laprox" in state]
    model = str(info.get("model_path", "")).rstrip("/").rpartition("/")[2]
    if not ranks or len(ranks) < len(states):
        raise CommandError(
            f"stock SGLang {info.get('version', '')} with {model}: no LaProx to watch, start it with "
            "--enable-laprox"
        )
    outcomes: Counter[str] = Counter()
    for said in ranks:
        outcomes.update({"pruned": said["pruned"]} | said["unpruned"])
    pool = pool_of(ranks)
    return Snapshot(
        when,
        model,
        str(info.get("version", "")),
        str(info.get("attention_backend", "")),
        budget_of(ranks[0]["config"]),
        len(ranks),
        sum(pool.values()),
        pool,
        total(ranks, "surplus_slots"),
        total(ranks, "running"),
        total(ranks, "waiting") + total(ranks, "prefilling"),
        total(ranks, "running_tokens"),
        dict(outcomes),
        {
            "requests": total(ranks, "requests"),
            "prunes": total(ranks, "prunes"),
            "shrinks": total(ranks, "shrinks"),
            # As the metric: the server's own number is less by what views took that freed nothing.
            "slots_freed": total(ranks, "slots_freed") + total(ranks, "slots_taken"),
        },
        # An idle rank goes on saying how fast it was.
        sum(state.get("last_gen_throughput") or 0.0 for state in states if state["laprox"]["running"]),
        share_of_prompts(ranks, "cached_tokens"),
        share_of_prompts(ranks, "cached_from_host", "cached_from_storage"),
        total(ranks, "host_slots"),
        total(ranks, "host_slots") - total(ranks, "host_available_slots"),
        kept_by_layer(ranks),
        ranks[0]["untested"],
    )


def budget_of(config: Mapping[str, Any]) -> str:
    least, most = config["budget"], config.get("budget_max")
    return str(least) if most in (None, least) else f"{least} to {most}"


Ranks = Sequence[Mapping[str, Any]]


def total(ranks: Ranks, name: str) -> int:
    return sum(said[name] for said in ranks)


def pool_of(ranks: Ranks) -> dict[str, int]:
    """Tails are what running requests hold beside the tree and their views: generated tokens, and prompts of
    a server without a prefix cache."""
    exact, views = total(ranks, "protected_slots"), total(ranks, "view_slots")
    # Evictable too, by the server's own count.
    surplus = total(ranks, "surplus_slots")
    return {
        "exact, in use": exact,
        "views": views,
        "tails": max(0, total(ranks, "pinned_slots") - exact - views + surplus),
        "exact, evictable": total(ranks, "evictable_slots") - surplus,
        "free": total(ranks, "available_slots"),
    }


def share_of_prompts(ranks: Ranks, *names: str) -> float | None:
    known = [said for said in ranks if said.get("prompt_tokens")]
    return sum(total(known, name) for name in names) / total(known, "prompt_tokens") if known else None


def kept_by_layer(ranks: Ranks) -> list[float]:
    known = [said for said in ranks if said.get("scored_cells")]
    scored = total(known, "scored_cells")
    return [sum(kept) / scored for kept in zip(*(said["kept_cells"] for said in known), strict=True)]
