"""What a server said of itself at one moment."""

from typing import Any

import msgspec

from laprox_sglang.cli import CommandError


class Snapshot(msgspec.Struct, frozen=True):
    """
    Attributes:
        when: seconds of a clock that only goes forward.
        ranks: data-parallel ranks; the numbers are of the first.
        slots: size of the KV pool.
        pool: slots by what they hold; their sum is ``slots``.
        running_tokens: what the running requests would hold if nothing had been pruned.
        outcomes: requests that ended, by what was done.
        counts: totals that only grow, whose differences are rates.
        hit_rate: share of prompt tokens that came from the prefix cache; None where the server does not say.
        kept: share of the cells of each layer that was kept; empty where the server does not say.
    """

    when: float
    model: str
    version: str
    backend: str
    budget: str
    ranks: int
    slots: int
    pool: dict[str, int]
    running: int
    waiting: int
    running_tokens: int
    outcomes: dict[str, int]
    counts: dict[str, int]
    tokens_per_second: float
    hit_rate: float | None
    kept: list[float]


def snapshot(info: dict[str, Any], when: float) -> Snapshot:
    """Reads ``/server_info``.

    Raises:
        CommandError: it is of a server without LaProx.
    """
    states = info["internal_states"]
    said = states[0].get("laprox") if states else None
    model = str(info.get("model_path", "")).rstrip("/").rpartition("/")[2]
    if said is None:
        raise CommandError(
            f"stock SGLang {info.get('version', '')} with {model}: no LaProx to watch, start it with "
            "--enable-laprox"
        )
    outcomes = {"pruned": said["pruned"]} | said["unpruned"]
    return Snapshot(
        when,
        model,
        str(info.get("version", "")),
        str(info.get("attention_backend", "")),
        str(said["config"]["budget"]),
        len(states),
        info["max_total_num_tokens"],
        pool_of(said, info["max_total_num_tokens"]),
        said["running"],
        said["waiting"] + said["prefilling"],
        said["running_tokens"],
        outcomes,
        {name: said[name] for name in ("requests", "prunes", "slots_freed")},
        states[0].get("last_gen_throughput") or 0.0,
        hit_rate(said),
        kept_by_layer(said),
    )


def pool_of(said: dict[str, Any], slots: int) -> dict[str, int]:
    """Tails are what running requests hold beside the tree and their views: generated tokens, and prompts of
    a server without a prefix cache."""
    pinned = slots - said["available_slots"] - said["evictable_slots"]
    exact, views = said["protected_slots"], said["view_slots"]
    return {
        "exact, in use": exact,
        "views": views,
        "tails": max(0, pinned - exact - views),
        "exact, evictable": said["evictable_slots"],
        "free": said["available_slots"],
    }


def hit_rate(said: dict[str, Any]) -> float | None:
    prompt = said.get("prompt_tokens")
    return said["cached_tokens"] / prompt if prompt else None


def kept_by_layer(said: dict[str, Any]) -> list[float]:
    scored = said.get("scored_cells")
    return [kept / scored for kept in said["kept_cells"]] if scored else []
