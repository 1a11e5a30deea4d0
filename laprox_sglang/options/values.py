"""Values of options: how they are written, which are served, and what is said of the others."""

import math

Budget = int | float
# What stays dense of a prompt: a number of first tokens, or the instructions and tools of a chat.
KeepPrefix = int | str
SYSTEM = "system"
# The window's length is chosen by the size of the view.
AUTO = "auto"
# What a request may say, where the server lets it.
REQUEST_OPTIONS = ("enabled", "budget", "keep_prefix", "return_kept")

# A fraction is never fewer slots: a short prompt needs slots, not a share of it. SmolLM2 answers 78.7 % of
# prompts of up to 1,800 tokens exactly at 3 %, with 64 slots at least 93.8 %, as with all KV
# (benchmarks/results/quality-sharing.json).
FEWEST_SLOTS = 64

# Options travel between processes as 64-bit integers. This bound is far below, and above any useful value.
LARGEST = 2**31 - 1
DIGITS = len(str(LARGEST))
LONGEST_MESSAGE = 200

# Why a request is refused: its options are no object of options; a value is not served; the server does not
# let requests set that option; or it asks SGLang for something that LaProx does not support.
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


BUDGET_FORMS = (
    f"give a fraction above 0 and up to 1 (0.1 keeps 10 %, and {FEWEST_SLOTS} tokens at least), or a whole "
    "number of tokens from 2 up"
)


def check_budget(budget: Budget, name: str = "budget") -> None:
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise ConfigError(f"{name} {shown(repr(budget))} is not a number; {BUDGET_FORMS}")
    # NaN fails every comparison, so it fails this one.
    if not (1 <= budget <= LARGEST if isinstance(budget, int) else 0 < budget <= 1):
        raise ConfigError(f"{name} {shown_number(budget)} is out of range; {BUDGET_FORMS}")


def parse_tokens(text: str) -> int | str:
    """What is a number of tokens or a word, as written on a command line."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= DIGITS else text


def check_tokens(name: str, value: object, word: str, least: int, most: int) -> None:
    """Refuses what is neither ``word`` nor a number of tokens within its bounds."""
    if value != word and (
        not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most
    ):
        raise ConfigError(
            f'{name} {shown_number(value)} is not served; give "{word}" or a number of tokens, '
            f"{least} to {most}"
        )


def check_keep_prefix(keep: KeepPrefix) -> None:
    check_tokens("keep-prefix", keep, SYSTEM, 0, LARGEST)


def parse_floor(text: str) -> float:
    """A floor as written on a command line."""
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"floor {shown(repr(text))} is not a number; give a share, from 0 to 1") from None


def counts_tokens(budget: Budget) -> bool:
    """Whether ``budget`` is a number of tokens; 1 is a fraction, however it is written."""
    return isinstance(budget, int) and budget > 1


def budget_slots(budget: Budget, length: int) -> int:
    """Slots that ``budget`` grants to ``length`` tokens; a fraction no fewer than ``FEWEST_SLOTS``."""
    slots = int(budget) if counts_tokens(budget) else max(slots_of_share(budget, length), FEWEST_SLOTS)
    return min(slots, length)


def slots_of_share(share: float, length: int) -> int:
    """The least number of slots that is ``share`` of ``length`` tokens."""
    # 0.07 * 100 is 7.000000000000001, which is seven slots, not eight.
    return math.ceil(round(share * length, 6))


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


def parse_names(text: str) -> tuple[str, ...]:
    """Names as on a command line, with commas; nothing for none."""
    return tuple(name.strip() for name in text.split(",")) if text.strip() else ()


def check_request_options(names: tuple[str, ...]) -> None:
    for name in names:
        if name not in REQUEST_OPTIONS:
            raise ConfigError(
                f"request-options {shown(repr(name))} is no option of a request; there are "
                f"{','.join(REQUEST_OPTIONS)}"
            )
