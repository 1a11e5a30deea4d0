"""What a server was told."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from laprox_sglang.options.refusals import check_untested
from laprox_sglang.options.values import (
    AUTO,
    LARGEST,
    SYSTEM,
    Budget,
    ConfigError,
    KeepPrefix,
    check_budget,
    check_keep_prefix,
    check_request_options,
    check_tokens,
    check_whole,
    counts_tokens,
    shown,
)

if TYPE_CHECKING:
    from laprox_sglang.scorers import Method

# Carries the configuration to SGLang's child processes, whose plugins are loaded without arguments.
ENVIRONMENT = "LAPROX_CONFIG"
# The pooling kernel is unrolled over its width, so a wide one takes long to compile. A window is meant to
# hold the question at a prompt's end, and no question is longer than this.
WIDEST_POOLING, WIDEST_WINDOW = 127, 1024
# These differ from the paper's defaults. Its average over 7 positions loses the ends of long numbers; a wider
# average keeps them but answers worse on prose, and a parabola does not. Its ranking over all layers at once
# leaves too few cells to some layers. Its window of 32 takes most of a small budget
# (benchmarks/results/quality-ablation.json).
POOLING, POOLING_KERNEL, ALLOCATOR, WINDOW = "parabola", 17, "layer", 24
# The tokens of a window are always kept. A window of 24 would fill a view of 28 slots together with its
# sinks, and half of one of 51. So a view with fewer slots than this, sinks not counted, has a smaller window.
SMALL_VIEW, SMALL_WINDOW = 64, 8
SINK_TOKENS = 4


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a server. Lengths are in tokens.

    Attributes:
        budget: size of a view, on average over layers and KV heads: a float in (0, 1] or the integer 1 is a
            fraction, but ``FEWEST_SLOTS`` at least; an integer from 2 up is a number of tokens.
        budget_max: the same while there is room for it, and ``budget`` is what no view goes below; None is
            ``budget``: what is kept of a prompt is then nobody else's affair.
        window: last queries of the prompt that score it; these tokens are always kept. ``"auto"`` are
            ``WINDOW``, or ``SMALL_WINDOW`` where a view has fewer than ``SMALL_VIEW`` slots beside its sinks.
        scorer: what cells are ranked by: a name in ``scorers.SCORERS``, or ``package.module:name``.
        allocator: what they compete over, of ``scorers.allocators.ALLOCATORS``.
        floor: share of a head's average budget that every KV head keeps in any case; None is the allocator's.
        pooling: how scores are pooled over positions, of ``scorers.pooling.KINDS``.
        pooling_kernel: width of the pooling in positions; odd where it slides.
        min_tokens: prompts with fewer tokens behind the dense prefix are left whole.
        sink_tokens: first positions of a prompt that are always kept.
        keep_prefix: first tokens of every prompt that stay dense; ``"system"`` are the system and
            developer messages and the tools of a chat request, and nothing of any other prompt. Where the
            chat template puts them behind other messages, views keep them.
        request_options: names of the ``Options`` that requests may set.
        events: where events are published, ``tcp://127.0.0.1:PORT`` or ``ipc:///PATH``; None for nowhere.
        events_public: events may be published where other machines reach them.
        untested: flags of SGLang that may be given although they were not tried, of ``refusals.UNTRIED``,
            with or without their dashes.
    """

    budget: Budget = 0.2
    budget_max: Budget | None = None
    scorer: str = "laprox"
    allocator: str = ALLOCATOR
    floor: float | None = None
    window: int | str = AUTO
    pooling: str = POOLING
    pooling_kernel: int = POOLING_KERNEL
    min_tokens: int = 256
    sink_tokens: int = SINK_TOKENS
    keep_prefix: KeepPrefix = SYSTEM
    request_options: tuple[str, ...] = ("budget", "enabled", "keep_prefix")
    events: str | None = None
    events_public: bool = False
    untested: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Given in Python it may be any sequence; what comes back from the environment is a tuple.
        msgspec.structs.force_setattr(self, "request_options", tuple(self.request_options))
        names = dict.fromkeys(str(name).removeprefix("--") for name in self.untested)
        msgspec.structs.force_setattr(self, "untested", tuple(names))
        check_request_options(self.request_options)
        check_untested(self.untested)
        check_budget(self.budget)
        self._check_most()
        check_tokens("window", self.window, AUTO, 1, WIDEST_WINDOW)
        self._check_method()
        check_whole("sink-tokens", self.sink_tokens, 0, LARGEST)
        check_whole("min-tokens", self.min_tokens, 0, LARGEST)
        check_keep_prefix(self.keep_prefix)
        if self.min_tokens <= self.longest_window + self.sink_tokens:
            raise ConfigError(
                f"min-tokens {self.min_tokens} must be above window + sink-tokens = "
                f"{self.longest_window + self.sink_tokens}: raise it, or lower those"
            )

    @property
    def most(self) -> Budget:
        """Size of a view while there is room."""
        return self.budget if self.budget_max is None else self.budget_max

    @property
    def elastic(self) -> bool:
        """Whether views may be larger than ``budget``, and shrink."""
        return self.most != self.budget

    @property
    def longest_window(self) -> int:
        """Queries that are saved of every prompt: as many as may score it."""
        return self.window if isinstance(self.window, int) else WINDOW

    def window_of(self, slots: int) -> int:
        """Queries that score a prompt whose view has ``slots`` slots beside its sinks."""
        if isinstance(self.window, int):
            return self.window
        return WINDOW if slots >= SMALL_VIEW else SMALL_WINDOW

    @property
    def windows(self) -> set[int]:
        """Every value that ``window_of`` can return: one, or two where small views have their own."""
        return {self.window_of(0), self.longest_window}

    @property
    def method(self) -> "Method":
        """What the names stand for."""
        # Imported here so that the commands that watch a server need not load torch.
        from laprox_sglang.scorers import Method, find
        from laprox_sglang.scorers.allocators import allocation
        from laprox_sglang.scorers.pooling import Pooling

        pooling = Pooling(self.pooling, self.pooling_kernel)
        return Method(find(self.scorer), pooling, allocation(self.allocator, self.floor))

    def _check_most(self) -> None:
        if self.budget_max is None:
            return
        check_budget(self.budget_max, "budget-max")
        if counts_tokens(self.budget) == counts_tokens(self.budget_max) and self.budget_max < self.budget:
            raise ConfigError(
                f"budget-max {self.budget_max} is below budget {self.budget}, which every view has: give at "
                "least that, or leave it out"
            )

    def _check_method(self) -> None:
        """Refuses what is not known, and what does not go together."""
        from laprox_sglang.scorers import SEE_BUDGET, is_pooled
        from laprox_sglang.scorers.pooling import KINDS

        for option in ("scorer", "allocator", "pooling"):
            if not isinstance(getattr(self, option), str):
                raise ConfigError(f"{option} {shown(repr(getattr(self, option)))} must be a name")
        check_whole("pooling-kernel", self.pooling_kernel, 1, WIDEST_POOLING)
        if self.pooling not in KINDS:
            names = ", ".join(KINDS)
            raise ConfigError(f"pooling {shown(repr(self.pooling))} is not known; give one of {names}")
        if self.pooling != "chunk" and self.pooling_kernel % 2 == 0:
            raise ConfigError(f"pooling-kernel {self.pooling_kernel} must be odd: {self.pooling} slides")
        try:
            method = self.method
        except ValueError as error:
            raise ConfigError(shown(error)) from None
        if self.elastic and self.scorer in SEE_BUDGET:
            raise ConfigError(
                f"budget-max does not go together with scorer {self.scorer}: its scores depend on the size "
                "of the view, so that a smaller one is no part of it; leave budget-max out"
            )
        pooled = (self.pooling, self.pooling_kernel) != (POOLING, POOLING_KERNEL) and self.pooling_kernel > 1
        if pooled and not is_pooled(method.scorer):
            raise ConfigError(
                f"pooling {self.pooling} over {self.pooling_kernel} does nothing, as scorer {self.scorer} "
                "has none, or one of its own: leave it out"
            )

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Config | None":
        """The configuration in ``LAPROX_CONFIG``; None where it is not set.

        Raises:
            ConfigError: it is set, and it is not a JSON object of these options.
        """
        text = environ.get(ENVIRONMENT)
        if text is None:
            return None
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{ENVIRONMENT}={shown(text)}: {shown(error)}") from None

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()
