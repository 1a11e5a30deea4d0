"""What a check came to."""

from typing import Literal

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """
    Attributes:
        area: machine, installation, hooks, command line or chat template.
        name: what was looked at.
        reason: what was found, in one line.
        fix: what to do about it; "" where there is nothing to do.
    """

    area: str
    name: str
    status: Literal["ok", "warning", "error"]
    reason: str
    fix: str = ""


class Area:
    """Makes findings of one area."""

    def __init__(self, name: str) -> None:
        self.name = name

    def ok(self, name: str, reason: str) -> Finding:
        return Finding(self.name, name, "ok", reason)

    def warning(self, name: str, reason: str, fix: str) -> Finding:
        return Finding(self.name, name, "warning", reason, fix)

    def error(self, name: str, reason: str, fix: str) -> Finding:
        return Finding(self.name, name, "error", reason, fix)
