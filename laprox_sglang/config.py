"""What the server was told, and what a request may say on top of it."""

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from laprox_sglang.scorers.method import Method

# Carries the configuration to SGLang's child processes, whose plugins are loaded without arguments.
ENVIRONMENT = "LAPROX_CONFIG"

Budget = int | float
# What stays dense of a prompt: its first tokens, or what its chat template makes of instructions and tools.
KeepPrefix = int | str
SYSTEM = "system"

# Options travel between processes as 64-bit integers; nothing sensible comes near.
LARGEST = 2**31 - 1
DIGITS = len(str(LARGEST))
LONGEST_MESSAGE = 200
# A GPU unrolls the pooling; a window wider than this no prompt's end deserves.
WIDEST_POOLING, WIDEST_WINDOW = 127, 1024
# The paper's 7 loses the ends of long numbers, and its one ranking over all layers starves some of them:
# benchmarks/results/quality-ablation.json.
POOLING, POOLING_KERNEL, ALLOCATOR = "average", 15, "layer"


# What is wrong with a request that is refused: its options are none, have values that are not served, may not
# be set here, or it asks for something else that does not go with LaProx.
REFUSED = ("malformed", "value", "not_allowed", "unsupported")


class ConfigError(ValueError):
    """An option that cannot be served; the message is one line for the person who gave it.

    Attributes:
        fault: one of ``REFUSED``.
    """

    def __init__(self, message: str, fault: str = "value") -> None:
        super().__init__(message)
        self.fault = fault


def parse_budget(text: str) -> Budget:
    """A budget as written on a command line: ``0.1`` is a fraction, ``512`` are tokens."""
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            raise ConfigError(f"budget {text!r} is not a number; {BUDGET_FORMS}") from None


BUDGET_FORMS = "give a fraction above 0 and up to 1 (0.1 keeps 10 %), or a whole number of tokens from 2 up"


def check_budget(budget: Budget) -> None:
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise ConfigError(f"budget {shown(repr(budget))} is not a number; {BUDGET_FORMS}")
    # NaN fails every comparison, so it fails this one.
    if not (1 <= budget <= LARGEST if isinstance(budget, int) else 0 < budget <= 1):
        raise ConfigError(f"budget {shown_number(budget)} is out of range; {BUDGET_FORMS}")


def parse_keep_prefix(text: str) -> KeepPrefix:
    """A kept prefix as written on a command line: ``system``, or a number of tokens."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= DIGITS else text


def check_keep_prefix(keep: KeepPrefix) -> None:
    if keep != SYSTEM and (not isinstance(keep, int) or isinstance(keep, bool) or not 0 <= keep <= LARGEST):
        raise ConfigError(
            f'keep-prefix {shown_number(keep)} is not served; give "{SYSTEM}" or a number of tokens, '
            f"0 to {LARGEST}"
        )


def parse_floor(text: str) -> float:
    """A floor as written on a command line."""
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"floor {shown(repr(text))} is not a number; give a share, from 0 to 1") from None


def budget_slots(budget: Budget, length: int) -> int:
    """Slots that ``budget`` grants to ``length`` tokens of a prompt."""
    if isinstance(budget, int) and budget > 1:
        return min(budget, length)
    # 0.07 * 100 is 7.000000000000001, which is seven slots, not eight.
    return min(math.ceil(round(budget * length, 6)), length)


def shown(text: object) -> str:
    """``text`` on one printable line of bounded length."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))
    return line if len(line) <= LONGEST_MESSAGE else line[:LONGEST_MESSAGE] + " …"


def shown_number(number: object) -> str:
    """``number`` on one line; Python refuses to write out whole numbers of thousands of digits."""
    if isinstance(number, int) and abs(number) > 10**LONGEST_MESSAGE:
        return f"of {number.bit_length()} bits"
    return shown(repr(number))


def check_whole(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(f"{name} {shown_number(value)} must be a whole number from {least} to {most}")


def parse_request_options(text: str) -> tuple[str, ...]:
    """Options as named on a command line, with commas; nothing for none."""
    return tuple(name.strip() for name in text.split(",")) if text.strip() else ()


def check_request_options(names: tuple[str, ...]) -> None:
    known = [field.name for field in msgspec.structs.fields(Options)]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"request-options {shown(repr(name))} is no option of a request; there are {','.join(known)}"
            )


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a server. Lengths are in tokens.

    Attributes:
        budget: size of a view, on average over layers and KV heads: a float in
            (0, 1] or the integer 1 is a fraction, an integer from 2 up is a number of tokens.
        window: last queries of the prompt that score it; these tokens are always kept.
        scorer: what cells are ranked by: a name in ``scorers.SCORERS``, or ``package.module:name``.
        allocator: what they compete over, of ``scorers.allocators.ALLOCATORS``.
        floor: share of a head's average budget that every KV head keeps in any case; None is the allocator's.
        pooling: how scores are pooled over positions, of ``scorers.pooling.KINDS``.
        pooling_kernel: width of the pooling in positions; odd where it slides.
        min_tokens: prompts with fewer tokens behind the dense prefix are left whole.
        sink_tokens: first positions of a prompt that are always kept.
        keep_prefix: first tokens of every prompt that stay dense; ``"system"`` are the leading system and
            developer messages and the tools of a chat request, and nothing of any other prompt.
        request_options: names of the ``Options`` that requests may set.
        events: where events are published, ``tcp://127.0.0.1:PORT`` or ``ipc:///PATH``; None for nowhere.
        events_public: events may be published where other machines reach them.
    """

    budget: Budget = 0.2
    scorer: str = "laprox"
    allocator: str = ALLOCATOR
    floor: float | None = None
    window: int = 32
    pooling: str = POOLING
    pooling_kernel: int = POOLING_KERNEL
    min_tokens: int = 256
    sink_tokens: int = 4
    keep_prefix: KeepPrefix = SYSTEM
    request_options: tuple[str, ...] = ("budget", "enabled", "keep_prefix")
    events: str | None = None
    events_public: bool = False

    def __post_init__(self) -> None:
        # Given in Python it may be any sequence; what comes back from the environment is a tuple.
        msgspec.structs.force_setattr(self, "request_options", tuple(self.request_options))
        check_request_options(self.request_options)
        check_budget(self.budget)
        check_whole("window", self.window, 1, WIDEST_WINDOW)
        self._check_method()
        check_whole("sink-tokens", self.sink_tokens, 0, LARGEST)
        check_whole("min-tokens", self.min_tokens, 0, LARGEST)
        check_keep_prefix(self.keep_prefix)
        if self.min_tokens <= self.window + self.sink_tokens:
            raise ConfigError(
                f"min-tokens {self.min_tokens} must be above window + sink-tokens = "
                f"{self.window + self.sink_tokens}: raise it, or lower those"
            )

    @property
    def method(self) -> "Method":
        """What the names stand for."""
        # Here, and not at the top: the commands that watch a server should not wait for torch.
        from laprox_sglang.scorers import find
        from laprox_sglang.scorers.allocators import allocation
        from laprox_sglang.scorers.method import Method
        from laprox_sglang.scorers.pooling import Pooling

        pooling = Pooling(self.pooling, self.pooling_kernel)
        return Method(find(self.scorer), pooling, allocation(self.allocator, self.floor))

    def _check_method(self) -> None:
        """Refuses what is not known, and what does not go together."""
        from laprox_sglang.scorers import is_pooled
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


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one request asks for in ``custom_params["laprox"]``; None stands for the server's value.

    Attributes:
        enabled: False leaves the prompt whole.
        budget, keep_prefix: as in ``Config``. Of a chat request, ``"system"`` is replaced by its number
            of tokens where the template is at hand.
        return_kept: report the kept positions of every layer and KV head.
    """

    enabled: bool = True
    budget: Budget | None = None
    keep_prefix: KeepPrefix | None = None
    return_kept: bool = False

    @classmethod
    def of(cls, custom_params: Mapping[str, Any] | None) -> "Options":
        """The options in a request's ``custom_params``.

        Raises:
            ConfigError: they are not an object of these options.
        """
        if not isinstance(custom_params, Mapping | None):
            raise ConfigError(
                f"custom_params must be an object, not {type(custom_params).__name__}", "malformed"
            )
        given = (custom_params or {}).get("laprox")
        if given is None:
            return cls()
        try:
            return msgspec.convert(given, cls)
        except msgspec.MsgspecError as error:
            # The message may repeat what a client sent: no line break of his gets into the log.
            raise ConfigError(f"custom_params.laprox: {shown(error)}", "malformed") from None

    def check(self, config: Config, context: int) -> None:
        """Refuses what a server with ``config`` and ``context`` tokens cannot serve.

        Raises:
            ConfigError: a bad value, or a budget above what the server was started with.
        """
        if self.budget is not None:
            check_budget(self.budget)
            if budget_slots(self.budget, context) > budget_slots(config.budget, context):
                raise ConfigError(
                    f"custom_params.laprox.budget {self.budget} is above the server's {config.budget}: ask "
                    'for at most that, for "enabled": false, or start the server with a larger '
                    "--laprox-budget"
                )
        if self.keep_prefix is not None:
            check_keep_prefix(self.keep_prefix)

    @staticmethod
    def check_allowed(custom_params: Mapping[str, Any] | None, config: Config) -> None:
        """Refuses options that requests may not set on this server.

        Args:
            custom_params: of a request, well-formed as ``of`` knows it.

        Raises:
            ConfigError: names the option, and the flag.
        """
        for name in (custom_params or {}).get("laprox") or ():
            if name not in config.request_options:
                allowed = ",".join((*config.request_options, name))
                raise ConfigError(
                    f"custom_params.laprox.{name} may not be set by requests here: leave it out, or start "
                    f"the server with --laprox-request-options {allowed}",
                    "not_allowed",
                )

    def keep_prefix_or(self, config: Config) -> KeepPrefix:
        return config.keep_prefix if self.keep_prefix is None else self.keep_prefix

    def dense_tokens(self, config: Config) -> int:
        """First tokens of the prompt that stay dense."""
        keep = self.keep_prefix_or(config)
        return keep if isinstance(keep, int) else 0
