"""Whether SGLang would find LaProx here, and be the one that it knows."""

import os
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, entry_points, requires, version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from laprox_sglang.options.server import ENVIRONMENT, Config
from laprox_sglang.options.values import ConfigError
from laprox_tools.doctor.finding import Area, Finding
from laprox_tools.doctor.machine import DISTRIBUTION

PLUGINS, PLATFORMS = "sglang.srt.plugins", "sglang.srt.platforms"
PLUGIN, PLATFORM = "laprox", "laprox_reference_cpu"
# What a server on a GPU needs beside SGLang itself.
PACKAGES = ("torch", "triton", "flashinfer-python", "sglang-kernel")

area = Area("installation")


def check_installation(environ: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    yield laprox()
    yield sglang()
    pins = pinned("sglang")
    for package in PACKAGES:
        yield pinned_package(package, pins.get(package))
    yield entry_point(PLUGINS, PLUGIN)
    yield entry_point(PLATFORMS, PLATFORM)
    yield plugin_filter(environ)
    yield configuration(environ)


def found(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def pinned(package: str) -> dict[str, str]:
    """Versions that ``package`` asks for, by name; of those that it pins."""
    try:
        lines = requires(package) or []
    except PackageNotFoundError:
        return {}
    pins: dict[str, str] = {}
    for line in lines:
        requirement = Requirement(line)
        for specifier in requirement.specifier:
            if specifier.operator == "==" and (requirement.marker is None or requirement.marker.evaluate()):
                pins[canonicalize_name(requirement.name)] = specifier.version
    return pins


def served() -> str | None:
    """The SGLang that LaProx serves; None where LaProx is not installed."""
    return pinned(DISTRIBUTION).get("sglang")


def laprox() -> Finding:
    mine = found(DISTRIBUTION)
    if mine is None:
        reason = "not installed: SGLang finds plugins by their package, not by a path"
        return area.error(DISTRIBUTION, reason, f"pip install {DISTRIBUTION}, or -e . in its folder")
    return area.ok(DISTRIBUTION, mine)


def sglang() -> Finding:
    there, wanted = found("sglang"), served()
    fix = f"in a new environment: pip install {DISTRIBUTION}"
    if there is None:
        return area.error("sglang", f"not installed; {wanted or 'one version'} is served", fix)
    if wanted is not None and there != wanted:
        return area.error("sglang", f"{there} is not served, only {wanted}", fix)
    return area.ok("sglang", there)


def pinned_package(package: str, pin: str | None) -> Finding:
    there = found(package)
    fix = f"in a new environment: pip install {DISTRIBUTION}"
    if there is None:
        return area.warning(package, "not installed", fix + " (a CPU does without it)")
    if pin is not None and there.partition("+")[0] != pin:
        return area.warning(package, f"{there}; SGLang pins {pin}", fix)
    return area.ok(package, there)


def entry_point(group: str, name: str) -> Finding:
    names = sorted({point.name for point in entry_points(group=group)})
    if name not in names:
        fix = f"pip install {DISTRIBUTION} in the environment that serves"
        return area.error(group, f"{name} is not among {names}: SGLang would not find it", fix)
    others = [other for other in names if other != name]
    beside = f", beside {', '.join(others)}" if others else ""
    if group == PLATFORMS and others:
        fix = f"on a machine without a GPU set SGLANG_PLATFORM={PLATFORM}"
        return area.warning(group, f"{name}{beside}: SGLang takes one", fix)
    return area.ok(group, name + beside)


def plugin_filter(environ: Mapping[str, str]) -> Finding:
    text = environ.get("SGLANG_PLUGINS", "")
    names = {name.strip() for name in text.split(",") if name.strip()}
    if not names:
        return area.ok("SGLANG_PLUGINS", "not set: all plugins load")
    if PLUGIN not in names:
        return area.error("SGLANG_PLUGINS", f"{text} keeps LaProx out", f"add {PLUGIN}, or unset it")
    if PLATFORM not in names:
        reason, fix = f"{text} keeps {PLATFORM} out", "add it on a machine without a GPU"
        return area.warning("SGLANG_PLUGINS", reason, fix)
    return area.ok("SGLANG_PLUGINS", text)


def configuration(environ: Mapping[str, str]) -> Finding:
    try:
        config = Config.from_environment(environ)
    except ConfigError as error:
        return area.error(ENVIRONMENT, str(error), "correct it, or unset it")
    if config is None:
        return area.ok(ENVIRONMENT, "not set: --enable-laprox turns LaProx on")
    return area.ok(ENVIRONMENT, f"turns LaProx on in every server started here: {config}")
