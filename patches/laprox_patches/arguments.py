"""Server arguments: LaProx's flags are among them, and what does not go with them is refused.

These hooks are the only ones in place without ``--enable-laprox``: they hold the flag.
"""

import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sglang.srt.arg_groups.model_override_base import model_config_of
from sglang.srt.arg_groups.overrides import resolved_view
from sglang.srt.environ import envs
from sglang.srt.plugins.hook_registry import HookType

from laprox_kernels import MAX_WINDOW
from laprox_patches.attached import attach_config, config_of, mark_typed, was_typed
from laprox_patches.flags import add_flags, read_flags
from laprox_patches.seam import Seam, SeamError, install
from laprox_sglang.options.check import (
    NOBODY_LOOKS,
    check_arguments,
    check_elastic,
    check_model,
    front_checks,
)
from laprox_sglang.options.request import Options
from laprox_sglang.options.server import ENVIRONMENT, Config
from laprox_sglang.options.values import SYSTEM, ConfigError, shown
from laprox_sglang.ports import ModelConfig, ServerArgs
from laprox_sglang.report.endpoint import check_endpoints
from laprox_sglang.views.memory import PREFILL_REQUESTS

WORKER = "laprox_patches.tokenizer.worker:app"


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
