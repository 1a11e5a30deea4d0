"""What will happen to a prompt: a function of the prompt and its options, of nobody else's."""

from typing import NamedTuple

from laprox_sglang.options.request import Options
from laprox_sglang.options.server import Config

# Why a prompt is left whole; the last two are found out when its view is to be made.
REASONS = ("disabled", "uncacheable", "no_decode", "short", "within_budget", "no_room", "not_in_tree")


class Plan(NamedTuple):
    """Fate of the columns [start, end) of a request, which a view may stand for.

    Attributes:
        start: length of the prefix that stays dense.
        end: length of the prompt.
        slots: slots m that the columns come to; end - start if they stay as they are.
        sinks: positions protected at the start of the columns.
        window: last positions, which are protected and score the others.
        reason: why there is no view; None if there is to be one.
    """

    start: int
    end: int
    slots: int
    sinks: int
    window: int
    reason: str | None

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def pruned(self) -> bool:
        return self.reason is None

    def whole(self, reason: str) -> "Plan":
        """The plan of the same prompt if it is left whole after all."""
        return self._replace(slots=self.length, reason=reason)


def make_plan(config: Config, options: Options, end: int, new_tokens: int, in_tree: bool = True) -> Plan:
    """Plans a prompt of ``end`` tokens.

    Args:
        end: tokens at the end of the prefill; after a retraction this includes output.
        new_tokens: tokens still to be generated.
        in_tree: whether the prefix cache may hold the prompt, as a view needs it to.
    """
    start = min(options.dense_tokens(config), end)
    length = end - start
    sinks = max(0, config.sink_tokens - start)
    slots = min(length, max(options.slots(config, length), config.longest_window + sinks))
    plan = Plan(start, end, slots, sinks, config.window_of(slots - sinks), None)
    if not options.enabled:
        return plan.whole("disabled")
    if not in_tree:
        return plan.whole("uncacheable")
    if new_tokens <= 1:
        # The first token comes out of the prefill itself: nothing would ever read the view.
        return plan.whole("no_decode")
    if length < config.min_tokens:
        return plan.whole("short")
    if slots == length:
        return plan.whole("within_budget")
    return plan
