"""What a check measured against its limit, as a table."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One figure of a check; without a limit it is only reported."""

    check: str
    what: str
    value: float
    unit: str = ""
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool | None:
        if self.least is None and self.most is None:
            return None
        return (self.least is None or self.value >= self.least) and (
            self.most is None or self.value <= self.most
        )

    def number(self, value: float) -> str:
        text = f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
        return f"{text} {self.unit}".rstrip()

    def limit(self) -> str:
        if self.least is not None and self.least == self.most:
            return f"= {self.number(self.least)}"
        if self.least is not None:
            return f"≥ {self.number(self.least)}"
        return "" if self.most is None else f"≤ {self.number(self.most)}"

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "met": self.met}


def per_cent(right: Iterable[bool]) -> float:
    given = list(right)
    return 100 * sum(given) / len(given)


def show(rows: list[Row]) -> None:
    table = Table()
    for heading in ("check", "what", "value", "limit", "met"):
        table.add_column(heading, justify="right" if heading in ("value", "limit") else "left")
    for row in rows:
        met = {None: "", True: "[green]yes", False: "[red]no"}[row.met]
        table.add_row(row.check, row.what, row.number(row.value), row.limit(), met)
    # Wide enough for every row also where the output is a file.
    Console(width=None if sys.stdout.isatty() else 120).print(table)
