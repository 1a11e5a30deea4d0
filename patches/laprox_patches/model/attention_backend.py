"""Attention backend: every resolved one passes here, after the pools exist and before graph capture."""

import logging
from importlib.metadata import version

from sglang.srt.arg_groups.overrides import resolved_view
from sglang.srt.plugins.hook_registry import HookType

from laprox_kernels import Unsupported
from laprox_patches.attached import config_of, reserved_of
from laprox_patches.model.ranks import ranks_here
from laprox_patches.seam import Seam, install
from laprox_patches.version import SERVED
from laprox_sglang.attention.backend import with_laprox
from laprox_sglang.cache.pool import LaproxKVPool
from laprox_sglang.options.refusals import used_untried
from laprox_sglang.options.server import Config
from laprox_sglang.options.values import shown
from laprox_sglang.ports import AttentionBackend, Runner
from laprox_sglang.runtime import Runtime
from laprox_sglang.scorers import BadScorer
from laprox_sglang.served_model import UnsupportedModel, scored_layers
from laprox_sglang.streams import ForwardStream
from laprox_sglang.views.capacity import expectation

logger = logging.getLogger(__name__)
TELL_US = "Please report whether it works, and how"


def wrap(backend: AttentionBackend, runner: Runner, full_attn_backend: object) -> AttentionBackend:
    # In the scheduler's process this is the place to see that all hooks hold: nothing is served yet.
    install()
    # A draft worker proposes tokens; it reads its own KV, whole.
    if runner.is_draft_worker:
        return backend
    config = config_of(runner.server_args)
    assert config is not None
    pool, rows = runner.token_to_kv_pool, runner.req_to_token_pool.req_to_token
    assert isinstance(pool, LaproxKVPool)
    longest = min(runner.model_config.context_len, pool.size)
    try:
        layers, stream = scored_layers(runner.model), forward_stream(runner)
        runtime = Runtime(config, layers, pool, rows, longest, runner.dtype, stream, ranks_here())
    except UnsupportedModel as error:
        # Not an Exception: SGLang would log a traceback of it.
        raise SystemExit(
            f"laprox: --model-path {runner.server_args.model_path} is not served: {error}"
        ) from None
    except Unsupported as error:
        raise SystemExit(f"laprox: no kernel prunes for this model and device: {error}") from None
    except BadScorer as error:
        raise SystemExit(f"laprox: {shown(error)}") from None
    logger.info(start_line(config, runner, backend))
    runtime.report.untested = try_untested(config, runner)
    return with_laprox(backend, runtime)


def forward_stream(runner: Runner) -> ForwardStream:
    """Without overlap scheduling SGLang makes the stream as well, and launches nothing on it."""
    overlap = not resolved_view(runner.server_args).disable_overlap_schedule
    return ForwardStream(runner.forward_stream if overlap else None, runner.device)


def start_line(config: Config, runner: Runner, backend: AttentionBackend) -> str:
    pool, reserved = runner.token_to_kv_pool, reserved_of(runner.server_args)
    return (
        f"LaProx {version('laprox-sglang')} is on: SGLang {SERVED}, {type(backend).__name__}, {config}, "
        f"{reserved / 1e6:,.0f} MB reserved beside a pool of {pool.size:,} slots. "
        + expectation(config, pool.size, runner.model_config.context_len, pool.dtype.itemsize)
    )


def try_untested(config: Config, runner: Runner) -> tuple[str, ...]:
    """What this server uses that was not tried; the log says it."""
    used = used_untried(resolved_view(runner.server_args))
    for untried in used:
        logger.warning("LaProx was not tried with %s: %s. %s", untried.flag, untried.why, TELL_US)
    names = tuple(untried.name for untried in used)
    if unused := [name for name in config.untested if name not in names]:
        logger.info("LaProx: --laprox-untested names what this server does not use: %s", ", ".join(unused))
    return names


SEAMS = (
    Seam(
        "sglang.srt.layers.attention.attention_registry.attn_backend_wrapper",
        wrap,
        HookType.AFTER,
        ("runner", "full_attn_backend"),
    ),
)
