"""One server in a terminal."""

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.panel import Panel
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from laprox_tools.sparkline import sparkline
from laprox_tools.top.snapshot import Snapshot

# Told apart without colours too.
PARTS = {
    "exact, in use": ("█", "blue"),
    "views": ("▓", "dark_orange"),
    "tails": ("▒", "yellow"),
    "exact, evictable": ("░", "green"),
    "free": ("·", "bright_black"),
}

NO_BREAK = "\u00a0"


class Bar:
    """A pool as a bar over the whole width; whatever is there at all is seen."""

    def __init__(self, pool: dict[str, int]) -> None:
        self._pool = pool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for name, cells in widths(self._pool, options.max_width).items():
            glyph, colour = PARTS[name]
            yield Segment(glyph * cells, Style.parse(colour))
        yield Segment.line()


def widths(pool: dict[str, int], width: int) -> dict[str, int]:
    """Cells of each part; their sum is ``width``, unless not even one is left for each."""
    total = sum(pool.values()) or 1
    cells = {name: max(1, size * width // total) if size else 0 for name, size in pool.items()}
    largest = max(cells, key=lambda name: cells[name])
    cells[largest] = max(0, cells[largest] + width - sum(cells.values()))
    return cells


def panel(name: str, now: Snapshot | None, before: Snapshot | None, fault: str | None) -> Panel:
    """
    Args:
        now, before: what it said last, and the time before that.
        fault: why it says nothing.
    """
    parts = [Text(fault, style="red")] if fault else []
    body = Group(*parts, *(contents(now, before) if now else ()))
    return Panel(body, title=Text(name), title_align="left", border_style="red" if fault else "none")


def contents(now: Snapshot, before: Snapshot | None) -> Iterator[Text | Bar]:
    ranks = f", {now.ranks} ranks" if now.ranks > 1 else ""
    yield Text(f"{now.model}, SGLang {now.version}, {now.backend}, budget {now.budget}{ranks}", style="bold")
    if now.untested:
        yield Text(f"not tried with LaProx: {', '.join(now.untested)}", style="yellow")
    yield Bar(now.pool)
    yield legend(now)
    held = now.pool["exact, in use"] + now.pool["views"] + now.pool["tails"]
    # Each request alone: what they share is counted once by the pool.
    yield line(
        f"{now.running:,} running, {now.waiting:,} waiting",
        f"{now.running_tokens:,} tokens in {held:,} slots" if now.running else "",
        f"{now.tokens_per_second:,.0f} tokens/s" if now.running and now.tokens_per_second else "",
    )
    if now.surplus or now.counts["shrinks"]:
        yield line(
            f"views hold {now.surplus:,} slots beyond what was promised", f"{now.counts['shrinks']:,} shrinks"
        )
    if now.host:
        yield line(f"host memory: {now.host_used:,} of {now.host:,} slots")
    ended = [f"{count:,} {outcome.replace('_', ' ')}" for outcome, count in now.outcomes.items() if count]
    yield line("ended: " + (", ".join(ended) or "none yet"))
    yield line(
        hits(now),
        f"{now.counts['slots_freed']:,} slots freed by {now.counts['prunes']:,} views",
        *(rates(now, before) if before else ()),
    )
    if now.kept:
        mean = sum(now.kept) / len(now.kept)
        yield Text(f"kept by layer, {100 * mean:.1f} % on average  ") + sparkline(now.kept)


def hits(now: Snapshot) -> str:
    if now.hit_rate is None:
        return ""
    from_host = f", {100 * (now.from_host or 0):.0f} % from host memory" if now.host else ""
    return f"prefix cache hit {100 * now.hit_rate:.0f} %{from_host}"


def line(*parts: str) -> Text:
    return Text("  ·  ".join(part for part in parts if part))


def legend(now: Snapshot) -> Text:
    text = Text(f"{now.slots:,} slots")
    for name, (glyph, colour) in PARTS.items():
        # Lines break between parts, not within.
        of_it = f" {name} {now.pool[name]:,}".replace(" ", NO_BREAK)
        text.append("  ").append(glyph, style=colour).append(of_it)
    return text


def rates(now: Snapshot, before: Snapshot) -> Iterator[str]:
    seconds = now.when - before.when
    # A server that started anew counts from zero.
    grown = {name: max(0, count - before.counts[name]) for name, count in now.counts.items()}
    if seconds > 0:
        yield f"{grown['requests'] / seconds:.1f} requests/s"
        yield f"{grown['slots_freed'] / seconds:,.0f} slots freed/s"
