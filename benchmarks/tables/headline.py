"""What the README says first: what LaProx wins, beside it what it loses, and what nobody measured yet."""

from collections.abc import Iterable
from importlib.metadata import requires
from itertools import zip_longest
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from benchmarks.harness.markdown import packages, table, wrapped
from benchmarks.serving.load.workload import BUDGET, LAPROX, STOCK
from benchmarks.tables.cells import FIGURES, is_behind
from benchmarks.tables.committed import Side, TablesError, serving
from benchmarks.tables.speed import (
    CHIP,
    FIRST_TOKEN,
    SLOWEST_TOKENS,
    SPEED,
    backends,
    faster_stock,
    rows,
)
from laprox_sglang.options.server import Config

# What a GPU's figures depend on, of what SGLang pins.
STACK = ("torch", "sglang-kernel", "flashinfer-python")


def headline() -> str:
    """The table, with the sentences around it."""
    found = rows()
    if (row := found.get("f")) is None:
        raise TablesError(
            f"the results of {CHIP} have no row f of stock and LaProx, which the headline is of"
        )
    turns = len(row[LAPROX]["ttft_p50_by_turn"])
    about = (
        f"{row[LAPROX]['requests'] // turns} agents of {turns} turns on an {CHIP.upper()}, LaProx keeping "
        f"{BUDGET * 100:g} % of each prompt, beside stock SGLang (attention backends {backends(row)}; 8B "
        f"shapes with random weights). [All figures](#speed)."
    )
    gaps = " ".join(not_measured([row[STOCK], row[LAPROX]]))
    return "\n\n".join(filter(None, [wrapped(about), two_columns(claims(found)), wrapped(gaps, "> ", "> ")]))


def claims(found: dict[str, Any]) -> list[tuple[bool, str]]:
    """Whether LaProx is behind, and in words by how much."""
    row = found["f"]
    pinned = [f"{row[server]['slots_mean']:,}" for server in (LAPROX, STOCK)]
    told = [
        claim(row, SPEED, "**{:.2f} times** the output tokens per second" + than_best(row)),
        claim(row, FIRST_TOKEN, "**{:.2f} times** as long to the first token (median)"),
        claim(row, "slots_mean", " KV slots pinned, not ".join(pinned)),
    ]
    if lone := found.get("ttft"):
        text = f"**{{:.2f}} times** as long between tokens at the 99th percentile ({lone['what']})"
        told.append(claim(lone, SLOWEST_TOKENS, text))
    return told


def claim(row: dict[str, Any], figure: str, text: str) -> tuple[bool, str]:
    ratio = row["ratio"][figure]
    return is_behind(ratio, bool(FIGURES[figure].more)), text.format(ratio)


def than_best(row: dict[str, Any]) -> str:
    if (stock := faster_stock("f")) is None:
        return ""
    ratio = row[LAPROX][SPEED] / stock[SPEED]
    return f" ({ratio:.2f} times the fastest stock's, on {stock['attention_backend']})"


def two_columns(told: list[tuple[bool, str]]) -> str:
    ahead, behind = ([text for is_lost, text in told if is_lost is lost] for lost in (False, True))
    return table(("LaProx is ahead", "LaProx is behind"), list(zip_longest(ahead, behind, fillvalue="")))


def not_measured(parts: list[Side]) -> list[str]:
    """What a reader would take for measured and is not; a sentence goes away with the first such figure."""
    told = []
    if (default := Config().budget) != BUDGET:
        told.append(f"**No speed was measured at the default budget**, {default * 100:g} %.")
    installed, used = stack(), packages(parts)
    if not of_versions(installed, parts):
        told.append(
            f"**What `pip install` brings** ({in_words(installed)}, SGLang's prefix tree in Rust) "
            f"**{first_figures(installed)}**. All other figures are of "
            f"{in_words({name: used[name] for name in STACK})}, and the tree in Python, on both sides."
        )
    return told


def first_figures(installed: dict[str, str]) -> str:
    """What was measured so far of the versions that are installed."""
    row = rows(f"{CHIP}-pip").get("f") if f"{CHIP}-pip" in serving() else None
    if row is None or not of_versions(installed, [row[STOCK], row[LAPROX]]):
        return "has no figure on a GPU yet"
    speed, first = row["ratio"][SPEED], row["ratio"][FIRST_TOKEN]
    return (
        f"has few so far: {speed:.2f} times the tokens per second of stock, {first:.2f} times as long to the "
        "first token, in the same workload"
    )


def of_versions(installed: dict[str, str], parts: list[Side]) -> bool:
    used = packages(parts)
    return all(public(used.get(package, ())) == {version} for package, version in installed.items())


def stack() -> dict[str, str]:
    """The versions that SGLang pins, of what figures on a GPU depend on."""
    found: dict[str, str] = {}
    for text in requires("sglang") or ():
        requirement = Requirement(text)
        name = str(canonicalize_name(requirement.name))
        if name in STACK and requirement.marker is None:
            [pin] = requirement.specifier
            found[name] = pin.version
    return {name: found[name] for name in STACK if name in found}


def public(versions: Iterable[str]) -> set[str]:
    """Without what a build adds, as in 2.11.0+cu130."""
    return {Version(version).public for version in versions}


def in_words(found: dict[str, Any]) -> str:
    told = {name: {version} if isinstance(version, str) else version for name, version in found.items()}
    return ", ".join(f"{name} {', '.join(sorted(public(versions)))}" for name, versions in told.items())
