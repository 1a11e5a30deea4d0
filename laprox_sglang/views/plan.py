"""What will happen to a prompt: a function of the prompt and its options, of nobody else's."""

from typing import NamedTuple

from laprox_sglang.options.request import Instructions, Options
from laprox_sglang.options.server import Config

# Why a prompt is left whole; the last two are found out when its view is to be made.
REASONS = ("disabled", "uncacheable", "no_decode", "short", "within_budget", "no_room", "not_in_tree")

# No instructions behind the dense prefix.
NOWHERE = Instructions()


class Plan(NamedTuple):
    """Fate of the columns [start, end) of a request, which a view may stand for.

    Attributes:
        start: length of the prefix that stays dense.
        end: length of the prompt.
        least: slots that the columns come to at least, as their request is promised; end - start if they
            stay as they are.
        sinks: positions protected at the start of the columns.
        window: last positions, which are protected and score the others.
        reason: why there is no view; None if there is to be one.
        spans: positions [a, b) between sinks and window that are protected too: instructions.
        surplus: slots that the view may have beyond ``least`` while there is room.
    """

    start: int
    end: int
    least: int
    sinks: int
    window: int
    reason: str | None
    spans: tuple[tuple[int, int], ...] = ()
    surplus: int = 0

    @property
    def most(self) -> int:
        return self.least + self.surplus

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def inside(self) -> int:
        """Positions that are protected between sinks and window."""
        return sum(beyond - first for first, beyond in self.spans)

    @property
    def protected(self) -> int:
        """Cells of every KV head that are kept in any case."""
        return self.sinks + self.inside + self.window

    @property
    def pruned(self) -> bool:
        return self.reason is None

    def whole(self, reason: str) -> "Plan":
        """The plan of the same prompt if it is left whole after all."""
        return self._replace(least=self.length, surplus=0, reason=reason)


def make_plan(
    config: Config,
    options: Options,
    end: int,
    new_tokens: int,
    in_tree: bool = True,
    instructions: Instructions = NOWHERE,
) -> Plan:
    """Plans a prompt of ``end`` tokens.

    Args:
        end: tokens at the end of the prefill; after a retraction this includes output.
        new_tokens: tokens still to be generated.
        in_tree: whether the prefix cache may hold the prompt, as a view needs it to.
        instructions: what of them lies behind the dense prefix.
    """
    start = min(options.dense_tokens(config), end)
    length = end - start
    sinks = max(0, config.sink_tokens - start)

    def between(window: int) -> tuple[tuple[int, int], ...]:
        """The instructions that neither the sinks nor a window cover."""
        low, high = start + sinks, end - window
        cut = ((max(first, low), min(beyond, high)) for first, beyond in instructions.spans)
        return tuple((first, beyond) for first, beyond in cut if first < beyond)

    plan = Plan(start, end, 0, sinks, config.longest_window, None, between(config.longest_window))
    least = min(length, max(options.slots(config.budget, length), plan.protected))
    surplus = max(0, options.slots(config.most, length) - least)
    # Of whatever size the view is, so that a smaller one is part of a larger one.
    window = config.window_of(least - sinks - plan.inside)
    # What a shorter window leaves of the instructions comes to no more than what it leaves of the budget.
    plan = plan._replace(least=least, window=window, spans=between(window), surplus=surplus)
    if not options.enabled:
        return plan.whole("disabled")
    if not in_tree:
        return plan.whole("uncacheable")
    if new_tokens <= 1:
        # The first token comes out of the prefill itself: nothing would ever read the view.
        return plan.whole("no_decode")
    if length < config.min_tokens:
        return plan.whole("short")
    # Instructions may come to more than any budget here, and memory to pack is reserved for budgets.
    if least == length or least > instructions.most:
        return plan.whole("within_budget")
    return plan
