"""What of ours is attached to SGLang's objects. (``laprox_sglang.engine`` reads the configuration by itself.)

Two more are not: a request's state (``req.laprox``, ``views.state``), and the runtime of a model runner
(``attn_backend.laprox``, ``attention.backend``).
"""

from collections.abc import Callable
from typing import TypeVar

from laprox_sglang.options.server import Config
from laprox_sglang.ports import GenerateRequest, ServerArgs
from laprox_sglang.report.facts import Facts

State = TypeVar("State")


def attached(owner: object, name: str, make: Callable[[], State]) -> State:
    """State of ours that lives as long as an object of SGLang, made when it is first asked for."""
    if not hasattr(owner, name):
        setattr(owner, name, make())
    state: State = getattr(owner, name)
    return state


def config_of(args: ServerArgs) -> Config | None:
    """The configuration of a server; None where LaProx was not asked for."""
    config: Config | None = getattr(args, "_laprox", None)
    return config


def attach_config(args: ServerArgs, config: Config) -> None:
    args._laprox = config  # type: ignore[attr-defined]


def mark_typed(args: ServerArgs) -> None:
    """They come from a command line: what is refused later ends in one line and no traceback."""
    args._laprox_command_line = True  # type: ignore[attr-defined]


def was_typed(args: ServerArgs) -> bool:
    typed: bool = getattr(args, "_laprox_command_line", False)
    return typed


def attach_reserved(args: ServerArgs, size: int) -> None:
    args._laprox_reserved = size  # type: ignore[attr-defined]


def reserved_of(args: ServerArgs) -> int:
    """Bytes set aside beside the KV pool."""
    size: int = getattr(args, "_laprox_reserved", 0)
    return size


def attach_facts(request: GenerateRequest, facts: Facts) -> None:
    request.laprox_facts = facts  # type: ignore[attr-defined]


def facts_of(request: GenerateRequest) -> Facts | None:
    """What was said of a request that has ended; nothing is, of several choices or prompts in one body."""
    facts: Facts | None = getattr(request, "laprox_facts", None)
    return facts
