"""What the README says first: what LaProx wins, beside it what it loses, and what nobody measured yet."""

from collections.abc import Iterable
from importlib.metadata import requires
from itertools import zip_longest
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from benchmarks.harness.markdown import packages, table, wrapped
from benchmarks.serving.kinds import BUDGET, FP8
from benchmarks.tables.cells import FIGURES, is_behind
from benchmarks.tables.committed import Side, TablesError, serving
from benchmarks.tables.speed import (
    AGAIN,
    AGENTS,
    CHIP,
    FIRST_TOKEN,
    LONE,
    PARALLEL,
    SHORT,
    SLOWEST_TOKENS,
    SPEED,
    Pair,
    measured,
    pairs,
)
from laprox_sglang.options.server import Config

# What a GPU's figures depend on, of what SGLang pins.
STACK = ("torch", "sglang-kernel", "flashinfer-python")


def headline() -> str:
    """The table, with the sentences around it.

    Raises:
        TablesError: a row that it is of was not measured on both sides.
    """
    found = pairs()
    if missing := [name for name in (AGENTS, PARALLEL, LONE, SHORT) if name not in found]:
        raise TablesError(f"the results of {CHIP} have no {', '.join(missing)} of stock and LaProx")
    about = (
        f"{serving()[CHIP]['chip']}, 8B shapes with random weights; LaProx keeps {BUDGET * 100:g} % of each "
        f"prompt. Without a mark: {found[AGENTS].what}; {found[AGENTS].told}. (f): "
        f"{found[PARALLEL].what}; (e): {found[SHORT].what}. [All figures](#speed)."
    )
    gaps = " ".join(not_measured(measured()))
    return "\n\n".join(filter(None, [wrapped(about), two_columns(claims(found)), wrapped(gaps, "> ", "> ")]))


def claims(found: dict[str, Pair]) -> list[tuple[bool, str]]:
    """Whether LaProx is behind, and in words by how much."""
    agents, parallel, lone, short = (found[name] for name in (AGENTS, PARALLEL, LONE, SHORT))
    slowest = f"**{{ratio:.2f}} times** as long between tokens at the 99th percentile ({lone.what})"
    return [
        claim(agents, SPEED, "**{ratio:.2f} times** the output tokens per second"),
        claim(agents, FIRST_TOKEN, "{laprox:,.0f} ms to the first token, not {stock:,.0f} (median)"),
        claim(agents, "itl_p50", "{laprox:.1f} ms between tokens, not {stock:.1f} (median)"),
        claim(agents, AGAIN, "**{laprox:.0f} %** of prompt tokens computed again, not {stock:.0f} %"),
        claim(parallel, SPEED, "(f) **{ratio:.2f} times** the output tokens per second"),
        claim(parallel, FIRST_TOKEN, "(f) **{ratio:.2f} times** as long to the first token (median)"),
        claim(parallel, "slots_mean", "(f) {laprox:,} KV slots pinned, not {stock:,}"),
        claim(lone, SLOWEST_TOKENS, slowest),
        claim(short, FIRST_TOKEN, "(e) **{ratio:.2f} times** as long to the first token (median)"),
    ]


def claim(pair: Pair, figure: str, text: str) -> tuple[bool, str]:
    ratio = pair.ratio(figure)
    told = text.format(ratio=ratio, stock=pair.stock[figure], laprox=pair.laprox[figure])
    return is_behind(ratio, bool(FIGURES[figure].more)), told


def two_columns(told: list[tuple[bool, str]]) -> str:
    ahead, behind = ([text for is_lost, text in told if is_lost is lost] for lost in (False, True))
    return table(("LaProx is ahead", "LaProx is behind"), list(zip_longest(ahead, behind, fillvalue="")))


def not_measured(parts: list[Side]) -> list[str]:
    """What a reader would take for measured and is not; a sentence goes away with the first such figure."""
    told = []
    if (default := Config().budget) != BUDGET:
        told.append(f"**No speed was measured at the default budget**, {default * 100:g} %.")
    if FP8 not in serving()[CHIP]["servers"].get("full", {}):
        told.append(
            "**Stock with fp8 KV, or on flashinfer, was not measured on these versions**; on [older ones]"
            "(benchmarks/README.md#history-an-older-stack) both were faster in (f) than stock as it starts."
        )
    installed, used = stack(), packages(parts)
    if not of_versions(installed, parts):
        told.append(
            f"**What `pip install` brings** ({in_words(installed)}) **was not measured**: these are of "
            f"{in_words({name: used[name] for name in STACK})}."
        )
    return told


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
