"""Which SGLang LaProx serves: by version, and by what the code reads of it.

Functions that are hooked are compared one by one (``seam``). Attributes are not functions: all seams
of SGLang 0.5.17 verified on 0.5.20, where a request keeps its KV state elsewhere.
"""

import dataclasses
import dis
import inspect
import pkgutil
from collections.abc import Mapping
from itertools import pairwise
from types import FunctionType

from sglang.version import __version__ as installed

from laprox_patches.seam import SeamError
from laprox_sglang.ports import PORTS

SERVED = "0.5.23"


def check_version(version: str = installed) -> None:
    """
    Raises:
        SeamError: this is not the SGLang that LaProx serves; the message says which one is.
    """
    if version != SERVED:
        raise SeamError(
            f"SGLang {version} is not served, only {SERVED}: pip install sglang=={SERVED}, or an older "
            "laprox-sglang"
        )


def check_ports(ports: Mapping[type, str] = PORTS) -> None:
    """
    Raises:
        SeamError: a class of SGLang is gone, or a member of it that the code reads; the message names it.
    """
    for protocol, path in ports.items():
        try:
            cls = pkgutil.resolve_name(path)
        except (ImportError, AttributeError) as error:
            raise SeamError(f"{path} is missing from this SGLang ({error})") from None
        declared = attributes(cls)
        missing = [name for name in sorted(members(protocol) - declared) if not is_assigned(cls, name)]
        if missing:
            raise SeamError(f"{path} has changed: no {', '.join(missing)}")


def members(protocol: type) -> set[str]:
    """Names that a Protocol of ``laprox_sglang.ports`` declares."""
    methods = {name for name, member in vars(protocol).items() if isinstance(member, FunctionType | property)}
    return {*vars(protocol).get("__annotations__", ()), *methods} - {"__init__", "__subclasshook__"}


def attributes(cls: type) -> set[str]:
    """Names that ``cls`` declares for its instances."""
    found = set(dir(cls))
    if dataclasses.is_dataclass(cls):
        found |= {field.name for field in dataclasses.fields(cls)}
    for base in cls.__mro__:
        # ``dir`` of an enumeration says nothing of its methods.
        found |= {*vars(base), *vars(base).get("__annotations__", ())}
    return found


def is_assigned(cls: type, name: str) -> bool:
    """Whether a method of ``cls`` assigns it to its instance."""
    return any(assigns(member, name) for base in cls.__mro__ for member in vars(base).values())


def assigns(member: object, name: str) -> bool:
    member = getattr(member, "__func__", member)
    if not isinstance(member, FunctionType):
        return False
    # Hooks may be in place already: arguments are resolved more than once in a process.
    function = inspect.unwrap(member)
    # Taking every method apart would make each process of a start half a second later.
    if name not in function.__code__.co_names:
        return False
    own = function.__code__.co_varnames[:1]
    # What it sets on another object is no member of its class. Python 3.13 loads two names at once.
    return any(
        (step.opname, step.argval) == ("STORE_ATTR", name)
        and own
        and own[0] in (before.argval, *loaded(before.argval))
        for before, step in pairwise(dis.get_instructions(function))
    )


def loaded(name: object) -> tuple[object, ...]:
    """The last of several names that one instruction loads."""
    return name[-1:] if isinstance(name, tuple) else ()


def table(ports: Mapping[type, str] = PORTS) -> str:
    """The ports as docs/architecture.md shows them."""
    rows = ["| SGLang's class | port | why | members |", "|---|---|---|---|"]
    for protocol, path in ports.items():
        why = (protocol.__doc__ or "").strip().splitlines()[0]
        names = ", ".join(f"`{name}`" for name in sorted(members(protocol)))
        rows.append(f"| `{path.removeprefix('sglang.srt.')}` | `{protocol.__name__}` | {why} | {names} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
