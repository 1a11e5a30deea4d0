"""Server arguments: the flags themselves, and the refusal of what does not go with them.

These hooks are the only ones in place without ``--enable-laprox``: they hold the flag.
"""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from sglang.srt.arg_groups.model_override_base import model_config_of
from sglang.srt.arg_groups.overrides import resolved_view
from sglang.srt.environ import envs
from sglang.srt.plugins.hook_registry import HookType

from laprox_kernels import MAX_WINDOW
from laprox_patches.attached import attach_config, config_of, mark_typed, was_typed
from laprox_patches.seam import Seam, SeamError, install
from laprox_sglang.options.check import (
    NOBODY_LOOKS,
    check_arguments,
    check_elastic,
    check_model,
    front_checks,
)
from laprox_sglang.options.refusals import UNTRIED_NAMES
from laprox_sglang.options.request import Options
from laprox_sglang.options.server import ENVIRONMENT, SMALL_VIEW, SMALL_WINDOW, WINDOW, Config
from laprox_sglang.options.values import (
    BUDGET_FORMS,
    SYSTEM,
    ConfigError,
    parse_budget,
    parse_floor,
    parse_names,
    parse_tokens,
    shown,
)
from laprox_sglang.ports import ModelConfig, ServerArgs
from laprox_sglang.report.endpoint import check_endpoints
from laprox_sglang.scorers import SCORERS
from laprox_sglang.views.memory import PREFILL_REQUESTS

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
WORKER = "laprox_patches.tokenizer.worker:app"


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


def from_command_line(
    original: Callable[[type, Namespace], ServerArgs], cls: type, args: Namespace
) -> ServerArgs:
    try:
        config = read_flags(args)
    except ConfigError as error:
        raise SystemExit(f"laprox: {error}") from None
    if config is not None:
        os.environ[ENVIRONMENT] = config.to_json()
    server_args = original(cls, args)
    # So that later refusals end in one line for the person at the command line, without a traceback.
    mark_typed(server_args)
    return server_args


@contextmanager
def one_line(record: ServerArgs) -> Iterator[None]:
    """Errors about the arguments ``record``: one line for whoever typed them, else the exception itself."""
    try:
        yield
    except (ConfigError, SeamError) as error:
        if was_typed(record):
            raise SystemExit(f"laprox: {error}") from None
        raise


def enable(self: ServerArgs) -> None:
    """Turns LaProx on in arguments that are about to be resolved, whichever way they came about."""
    if getattr(self, "_resolution_finished", False) or config_of(self) is not None:
        return
    with one_line(self):
        config = Config.from_environment()
        if config is None:
            return
        from laprox_patches.seams import register_all

        register_all()
        install()
        if self.tokenizer_worker_num > 1:
            load_in_workers()
    attach_config(self, config)
    if self.radix_cache_backend is None:
        self.radix_cache_backend = "laprox"
    if self.prefill_max_requests is None:
        self.prefill_max_requests = PREFILL_REQUESTS


def load_in_workers() -> None:
    """SGLang loads no plugins in tokenizer workers, but takes their application by its name."""
    path = envs.SGLANG_HTTP_SERVER_APP_PATH
    if path.is_set() and path.get() != WORKER:
        raise ConfigError(
            f"{path.name}={shown(path.get())} names another application than LaProx's, with which tokenizer "
            "workers load it: unset it"
        )
    path.set(WORKER)


def check_resolved(result: None, self: ServerArgs) -> None:
    with one_line(self):
        config = config_of(self)
        if config is not None:
            check_served(config, resolved_view(self), model_config_of(self))
        elif ENVIRONMENT in os.environ:
            raise ConfigError(
                "these ServerArgs are older than LaProx: give the engine arguments, not server_args"
            )


def check_served(config: Config, args: ServerArgs, model: ModelConfig) -> None:
    """Refuses what LaProx does not serve.

    Args:
        args: resolved arguments. The record itself holds what was typed, for ever: a refusal that reads
            it never fires.
        model: SGLang's ``ModelConfig``.

    Raises:
        ConfigError: names it.
    """
    if config.events is not None:
        check_endpoints(config.events, config.events_public, args.dp_size)
    # Before the arguments: another kind of model makes SGLang choose another attention backend.
    check_model(model)
    check_arguments(args, untested=config.untested)
    if config.keep_prefix == SYSTEM and not front_checks(args):
        raise ConfigError(f"--laprox-keep-prefix {SYSTEM}: {NOBODY_LOOKS}")
    if config.elastic:
        check_elastic(args)
    if args.device == "cuda" and config.longest_window > MAX_WINDOW:
        raise ConfigError(f"--laprox-window {config.window} is above {MAX_WINDOW}, the most on a GPU")
    preferred = args.preferred_sampling_params or {}
    Options.of(preferred.get("custom_params")).check(config)


TARGET = "sglang.srt.server_args.ServerArgs."
SEAMS = (
    Seam(TARGET + "add_cli_args", add_flags, HookType.AFTER, ("parser",)),
    Seam(TARGET + "from_cli_args", from_command_line, HookType.AROUND, ("cls", "args")),
    Seam(TARGET + "resolve_once", enable, HookType.BEFORE, ("self",), "None"),
    Seam(TARGET + "check_server_args", check_resolved, HookType.AFTER, ("self",)),
)
