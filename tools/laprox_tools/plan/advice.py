"""What a plan comes to, in words and in flags."""

from laprox_sglang.cli.card import Card
from laprox_sglang.cli.side import Side
from laprox_sglang.views.capacity import REASONS, SCORING_STEPS, SHORT_ANSWER, Hold, Load

# Decode steps that are shorter by less than this are not worth a view.
FASTER = 1.1


def no_room(laprox: Side, hold: Hold) -> str:
    return (
        f"Does not fit: LaProx reserves {sum(laprox.reserved.values()) / 1e9:.2f} GB, which leaves "
        f"{laprox.slots:,} slots; one request needs {hold.common + hold.entry:,} while it comes in."
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
            f"No gain by speed: scoring a prompt takes about as long as {SCORING_STEPS} decode steps over "
            f"it, and answers have {load.output} tokens."
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
