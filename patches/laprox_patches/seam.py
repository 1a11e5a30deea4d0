"""A place where SGLang is hooked, and how we know that it is still the place we know."""

import inspect
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sglang.srt.plugins.hook_registry import HookRegistry, HookType


class SeamError(RuntimeError):
    """SGLang is not the one we know: a version, a hook target or an attribute; the message names it."""


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
    hook: Callable[..., object]
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
            # A class method is looked up as a bound method; the hook wraps the function inside.
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


def annotation_text(annotation: object) -> str:
    if annotation is inspect.Signature.empty:
        return ""
    return inspect.formatannotation(annotation).strip("'\"")


_registered: list[Seam] = []


def register(seams: Iterable[Seam]) -> None:
    """Verifies all seams and registers their hooks, which SGLang applies when all plugins are loaded.

    Safe to call again.

    Raises:
        SeamError: as ``verify``.
    """
    new = [seam for seam in seams if seam not in _registered]
    verify(new)
    for seam in new:
        HookRegistry.register(seam.target, seam.hook, seam.kind)
    _registered.extend(new)


def install() -> None:
    """Applies what is registered, and looks whether every hook is really in place; safe to call again.

    SGLang only logs a hook that it could not apply, and passes over a target that another plugin
    has hooked before.

    Raises:
        SeamError: a hook is not in place.
    """
    HookRegistry.apply_hooks()
    for seam in _registered:
        if not in_place(seam):
            raise SeamError(f"{seam.target} could not be hooked; another plugin may have hooked it first")


def in_place(seam: Seam) -> bool:
    """Whether the seam's hook is among the wrappers around its target."""
    target = pkgutil.resolve_name(seam.target)
    function = getattr(target, "__func__", target)
    while function is not None:
        if any(cell.cell_contents is seam.hook for cell in function.__closure__ or ()):
            return True
        function = getattr(function, "__wrapped__", None)
    return False
