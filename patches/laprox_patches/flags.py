"""LaProx's flags: what they are called, what they say of themselves, and the configuration that they make."""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any

import msgspec

from laprox_sglang.options.refusals import UNTRIED_NAMES
from laprox_sglang.options.server import ENVIRONMENT, SMALL_VIEW, SMALL_WINDOW, WINDOW, Config
from laprox_sglang.options.values import (
    BUDGET_FORMS,
    ConfigError,
    parse_budget,
    parse_floor,
    parse_names,
    parse_tokens,
)
from laprox_sglang.scorers import SCORERS

HELP = {
    "budget": f"KV kept of a prompt, over all layers and heads: {BUDGET_FORMS}",
    "budget_max": "the same while the pool has room; when it runs short, views shrink, down to "
    "--laprox-budget; without it none does",
    "scorer": f"what cells are ranked by: {', '.join(SCORERS)}; or package.module:name, one of your own",
    "allocator": "what they compete over: model is one ranking of all cells, layer one of each layer's (as "
    "Ada-KV), uniform keeps as many in every head (as SnapKV)",
    "floor": "share of its average budget that every head keeps in any case, from 0 to 1; without it 0 with "
    "model, 0.2 with layer",
    "window": "last queries of a prompt that score it; these tokens are always kept: a number, or auto for "
    f"{WINDOW}, or {SMALL_WINDOW} where the view has less than {SMALL_VIEW} slots beside its sinks",
    "pooling": "how scores are pooled over positions: average, parabola (near ones weigh more), max, or "
    "chunk, whose positions share their mean",
    "pooling_kernel": "width of that pooling in positions (odd, but for chunk)",
    "min_tokens": "prompts with fewer tokens behind the dense prefix are left whole",
    "sink_tokens": "first positions of a prompt that are always kept",
    "keep_prefix": "first tokens of every prompt that stay dense: a number, or system for the leading system "
    "and developer messages and the tools of chat requests",
    "request_options": "what requests may set of budget, enabled, keep_prefix, return_kept: names with "
    "commas, or an empty string",
    "events": "publish events there, tcp://127.0.0.1:PORT or ipc:///PATH; with --dp-size the other replicas "
    "have the next ports, or the path with _dp1, _dp2, … behind it",
    "events_public": "let --laprox-events be an address that other machines reach",
    "untested": "flags of SGLang to try although they were not tried with LaProx, with commas: "
    + ", ".join(UNTRIED_NAMES),
}
PARSERS: dict[str, Callable[[str], Any]] = {
    "budget": parse_budget,
    "budget_max": parse_budget,
    "scorer": str,
    "allocator": str,
    "floor": parse_floor,
    "window": parse_tokens,
    "pooling": str,
    "keep_prefix": parse_tokens,
    "request_options": parse_names,
    "untested": parse_names,
}
TEXTS = (*PARSERS, "events")


def add_flags(result: None, parser: ArgumentParser) -> None:
    group = parser.add_argument_group("LaProx")
    group.add_argument(
        "--enable-laprox",
        action="store_true",
        help="Give running requests compressed views of their prompts.",
    )
    for field in msgspec.structs.fields(Config):
        flag = "--laprox-" + field.name.replace("_", "-")
        default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        # These have no single default: it depends on another flag, as their help says.
        depends = field.name in ("floor", "budget_max")
        by_default = "" if depends else f" (default {default or 'off'})"
        help_text = f"{HELP[field.name]}{by_default}".replace("%", "%%")
        kind: dict[str, Any] = {"type": str if field.name in TEXTS else int}
        if field.default is False:
            kind = {"action": "store_const", "const": True}
        group.add_argument(flag, dest=f"laprox_{field.name}", help=help_text, **kind)


def read_flags(args: Namespace) -> Config | None:
    """The configuration on a command line; None without ``--enable-laprox``.

    Raises:
        ConfigError: a bad value, or options without the flag that they belong to.
    """
    names = [field.name for field in msgspec.structs.fields(Config)]
    given = {name: value for name in names if (value := getattr(args, f"laprox_{name}")) is not None}
    if not args.enable_laprox:
        if given:
            flags = ", ".join("--laprox-" + name.replace("_", "-") for name in given)
            raise ConfigError(f"{flags} without --enable-laprox does nothing: add it, or leave these out")
        return None
    config = Config(**given | {name: PARSERS[name](given[name]) for name in PARSERS if name in given})
    # The same command line may be parsed twice; the second time this variable was set by the first.
    if os.environ.get(ENVIRONMENT, config.to_json()) != config.to_json():
        raise ConfigError(f"--enable-laprox and {ENVIRONMENT} in the environment: give one of them")
    return config
