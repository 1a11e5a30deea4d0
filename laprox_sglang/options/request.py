"""What a request may say on top of what its server was told."""

from typing import Self, TypeGuard

import msgspec

from laprox_sglang.options.server import Config
from laprox_sglang.options.values import (
    LARGEST,
    REQUEST_OPTIONS,
    Budget,
    ConfigError,
    KeepPrefix,
    budget_slots,
    check_budget,
    check_keep_prefix,
    counts_tokens,
    shown,
)
from laprox_sglang.ports import Json


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one request asks for in ``custom_params["laprox"]``; None stands for the server's value.

    Attributes:
        enabled: False leaves the prompt whole.
        budget: as in ``Config``. Of this and either of the server's, the smaller counts for each prompt.
        keep_prefix: as in ``Config``.
        return_kept: report the kept positions of every layer and KV head.
    """

    enabled: bool = True
    budget: Budget | None = None
    keep_prefix: KeepPrefix | None = None
    return_kept: bool = False

    @classmethod
    def of(cls, custom_params: Json | None) -> Self:
        """The options in a request's ``custom_params``.

        Raises:
            ConfigError: they are not an object of these options.
        """
        if not isinstance(custom_params, dict | None):
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

    def check(self, config: Config) -> None:
        """Refuses what a server with ``config`` cannot serve.

        Raises:
            ConfigError: a bad value, or a budget that is above the server's whatever the prompt. A number of
                tokens and a fraction compare otherwise for each prompt: ``slots`` sees to those.
        """
        if self.budget is not None:
            check_budget(self.budget)
            alike = counts_tokens(self.budget) == counts_tokens(config.most)
            if alike and self.budget > config.most:
                flag = "--laprox-budget" if config.budget_max is None else "--laprox-budget-max"
                raise ConfigError(
                    f"custom_params.laprox.budget {self.budget} is above the server's {config.most}: ask "
                    f'for at most that, for "enabled": false, or start the server with a larger {flag}'
                )
        if self.keep_prefix is not None:
            check_keep_prefix(self.keep_prefix)

    @staticmethod
    def check_allowed(custom_params: Json | None, config: Config) -> None:
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

    @classmethod
    def checked(cls, custom_params: Json | None, own: Json | None, config: Config) -> Self:
        """The options of a request, if a server with ``config`` serves them.

        Args:
            custom_params: those that count, which the server may prefer.
            own: those that the request itself gave.

        Raises:
            ConfigError: they are not served, or requests may not set one of ``own``.
        """
        options = cls.of(custom_params)
        cls.check_allowed(own, config)
        options.check(config)
        return options

    def slots(self, budget: Budget, length: int) -> int:
        """Slots for ``length`` tokens of a prompt, of what the server's ``budget`` grants them."""
        granted = budget_slots(budget, length)
        return granted if self.budget is None else min(granted, budget_slots(self.budget, length))

    def keep_prefix_or(self, config: Config) -> KeepPrefix:
        return config.keep_prefix if self.keep_prefix is None else self.keep_prefix

    def dense_tokens(self, config: Config) -> int:
        """First tokens of the prompt that stay dense."""
        keep = self.keep_prefix_or(config)
        return keep if isinstance(keep, int) else 0


class Instructions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a chat template knows of a prompt's instructions behind its dense prefix.

    Attributes:
        spans: their positions [a, b), in order; a view keeps them.
        most: slots that a view may have on their account.
        how: what became of all instructions, as ``prefix.Found.how``; None if nobody looked for them.
    """

    spans: tuple[tuple[int, int], ...] = ()
    most: int = LARGEST
    how: str | None = None


class Told(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options as they reach the scheduler: of a chat request, ``"system"`` is replaced by what it means.

    Attributes:
        instructions: no client may send it.
    """

    instructions: Instructions = Instructions()

    @classmethod
    def of(cls, custom_params: Json | None) -> Self:
        """As ``Options.of``; also of options that were sealed."""
        if not is_sealed(custom_params):
            return super().of(custom_params)
        try:
            return msgspec.json.decode(custom_params["laprox"], type=cls)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"custom_params.laprox: {shown(error)}", "malformed") from None

    def seal(self) -> str:
        """What says to the scheduler that these were checked: a text, where a client's are an object."""
        return msgspec.json.encode(self).decode()


def is_sealed(custom_params: Json | None) -> TypeGuard[Json]:
    """Whether the options in ``custom_params`` are what ``Told.seal`` says."""
    return isinstance(custom_params, dict) and isinstance(custom_params.get("laprox"), str)


def check_kind(session: object, beam_width: int | None) -> None:
    """Refuses requests that LaProx does not serve, whatever their options.

    Raises:
        ConfigError: names what they ask for.
    """
    serves = "--enable-laprox does not serve them"
    if session:
        raise ConfigError(f"session_params: sessions keep whole KV; {serves}", "unsupported")
    if (beam_width or 1) > 1:
        raise ConfigError(f"beam_width: beams copy rows of whole KV; {serves}", "unsupported")


assert Options.__struct_fields__ == REQUEST_OPTIONS
