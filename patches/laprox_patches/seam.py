"""A place where SGLang is hooked, and how we know that it is still the place we know."""

import inspect
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType


class SeamError(RuntimeError):
    """A hook target is gone or has changed; the message names it."""


@dataclass(frozen=True, slots=True)
class Seam:
    """One hook on one function of SGLang.

    Attributes:
        target: dotted path of the function.
        hook: what is called; its signature follows from ``kind``.
        kind: when it is called.
        parameters: names of the target's parameters that hook and design rely on, in order.
        returns: the target's return annotation as it is written; "" where it has none.
    """

    target: str
    hook: Callable[..., Any]
    kind: HookType
    parameters: tuple[str, ...]
    returns: str = ""


def verify(seams: Iterable[Seam]) -> None:
    """Compares every target with what its seam knows of it.

    Raises:
        SeamError: a target is missing, or its parameters or return annotation have changed.
    """
    for seam in seams:
        try:
            target = pkgutil.resolve_name(seam.target)
            # A class method comes bound; its hook sits on the function below.
            function = inspect.unwrap(getattr(target, "__func__", target))
            signature = inspect.signature(function)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise SeamError(f"{seam.target} is missing from this SGLang ({error})") from None
        parameters = tuple(signature.parameters)
        if parameters != seam.parameters:
            raise SeamError(f"{seam.target} has changed: parameters {parameters}, known {seam.parameters}")
        returns = annotation_text(signature.return_annotation)
        if returns != seam.returns:
            raise SeamError(f"{seam.target} has changed: returns {returns!r}, known {seam.returns!r}")


def annotation_text(annotation: Any) -> str:
    if annotation is inspect.Signature.empty:
        return ""
    return inspect.formatannotation(annotation).strip("'\"")


def install(seams: Iterable[Seam]) -> None:
    """Verifies all seams, then hooks them; safe to call again.

    Raises:
        SeamError: as ``verify``, or SGLang did not take a hook (it only logs such failures).
    """
    seams = tuple(seams)
    verify(seams)
    for seam in seams:
        if all(hook is not seam.hook for _, hook, _ in HookRegistry._hooks[seam.target]):
            HookRegistry.register(seam.target, seam.hook, seam.kind)
    HookRegistry.apply_hooks()
    for seam in seams:
        if seam.target not in HookRegistry._patched:
            raise SeamError(f"{seam.target} could not be hooked; SGLang's log above says why")
