"""Scheduler: a request whose options nobody has checked is checked before it is one to schedule."""

from collections.abc import Callable
from contextlib import ExitStack
from http import HTTPStatus

from sglang.srt.arg_groups.overrides import resolved_view
from sglang.srt.disaggregation.utils import prepare_abort
from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.scheduler.step import runtime
from laprox_patches.seam import Seam
from laprox_sglang.options.check import NOBODY_LOOKS, front_checks
from laprox_sglang.options.request import Options, Told, check_kind, is_sealed
from laprox_sglang.options.server import Config
from laprox_sglang.options.values import SYSTEM, ConfigError
from laprox_sglang.ports import Scheduler, TokenizedRequest


def handle_request(
    original: Callable[..., None],
    self: Scheduler,
    recv_req: TokenizedRequest,
    mm_cleanup: ExitStack,
    **kwargs: object,
) -> None:
    report = runtime(self).report
    try:
        check_request(self, recv_req, runtime(self).config)
    except ConfigError as error:
        report.refused.add(error.fault)
        refuse(self, recv_req, str(error))
    else:
        original(self, recv_req, mm_cleanup, **kwargs)


def check_request(scheduler: Scheduler, recv_req: TokenizedRequest, config: Config) -> None:
    """
    Raises:
        ConfigError: the request asks for what is not served, and nobody has told its client.
    """
    params = recv_req.sampling_params
    check_kind(recv_req.session_params, params.beam_width)
    given, args = params.custom_params, resolved_view(scheduler.server_args)
    # Every rank decides this by itself, and they must come to the same: what they were started with is.
    told = front_checks(args)
    if told and is_sealed(given):
        Told.of(given)
        return
    # Other front doors have merged in what the server prefers, which may be more than requests may set.
    preferred = (args.preferred_sampling_params or {}).get("custom_params")
    options = Options.checked(given, None if given == preferred else given, config)
    if options.keep_prefix == SYSTEM and not told:
        raise ConfigError(f"custom_params.laprox.keep_prefix {SYSTEM}: {NOBODY_LOOKS}", "unsupported")


def refuse(scheduler: Scheduler, recv_req: TokenizedRequest, message: str) -> None:
    """Ends a request as SGLang ends one that is bad, without running the model."""
    req = scheduler._create_generation_req(
        recv_req,
        recv_req.rid,
        recv_req.input_text,
        recv_req.input_ids,
        recv_req.sampling_params,
        stream=recv_req.stream,
        vocab_size=scheduler.model_config.vocab_size,
        http_worker_ipc=recv_req.http_worker_ipc,
        time_stats=recv_req.time_stats,
    )
    prepare_abort(req, message, status_code=HTTPStatus.BAD_REQUEST)
    scheduler.output_streamer.stream_output([req], False)


SEAMS = (
    Seam(
        "sglang.srt.managers.scheduler.Scheduler._handle_generate_request",
        handle_request,
        HookType.AROUND,
        ("self", "recv_req", "mm_cleanup", "mm_input_error"),
    ),
)
