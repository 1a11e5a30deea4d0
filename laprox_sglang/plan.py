"""What will happen to a prompt, decided once, from numbers the host knows."""

from typing import NamedTuple

from laprox_sglang.config import Config, Options, budget_slots


class Plan(NamedTuple):
    """Fate of the private range [start, end) of a request.

    Attributes:
        start, end: the private columns of the request's row.
        slots: slots m that the private range holds after the prefill; end - start if it stays whole.
        sinks: private positions protected at the start of the range.
        reason: why the range is left whole; None if it is pruned.
    """

    start: int
    end: int
    slots: int
    sinks: int
    reason: str | None

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def pruned(self) -> bool:
        return self.reason is None


def make_plan(config: Config, options: Options, cached: int, end: int, new_tokens: int) -> Plan:
    """Plans a prompt of ``end`` tokens whose first ``cached`` the tree holds.

    Args:
        cached: length of the intact prefix at admission.
        end: tokens at the end of the prefill; after a retraction this includes output.
        new_tokens: tokens still to be generated.
    """
    keep = config.keep_prefix if options.keep_prefix is None else options.keep_prefix
    budget = config.budget if options.budget is None else options.budget
    start = min(max(cached, keep), end)
    length = end - start
    sinks = max(0, config.sink_tokens - start)
    slots = min(length, max(budget_slots(budget, length), config.window + sinks))

    reason = None
    if not options.enabled:
        reason = "disabled"
    elif new_tokens <= 1:
        # The first token comes out of the prefill itself: nothing would ever read the segment.
        reason = "no_decode"
    elif length < config.min_tokens:
        reason = "short"
    elif slots == length:
        reason = "within_budget"
    return Plan(start, end, length if reason else slots, sinks, reason)
