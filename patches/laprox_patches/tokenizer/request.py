"""Tokenizer manager: a bad per-request option fails that request, before there is one to schedule; and what
the template knows of a prompt is added to the options of its request."""

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.attached import attached, config_of
from laprox_patches.seam import Seam
from laprox_sglang.options.refusals import OTHER_MULTIMODAL
from laprox_sglang.options.request import Instructions, Options, Told, check_kind
from laprox_sglang.options.server import Config
from laprox_sglang.options.values import SYSTEM, ConfigError
from laprox_sglang.ports import GenerateRequest, TokenizerManager
from laprox_sglang.prefix import ChatPrompt, ChatText, Found
from laprox_sglang.report.refused import Refused
from laprox_sglang.views.memory import largest_view


def check_options(result: None, self: TokenizerManager, obj: GenerateRequest, input_ids: list[int]) -> None:
    config = config_of(self.server_args)
    if config is None:
        return
    own = obj.sampling_params or {}
    assert isinstance(own, dict), "a batch is checked one by one"
    # SGLang merges the server's preferred parameters in only after this check.
    params = (self.preferred_sampling_params or {}) | own
    custom = params.get("custom_params")
    try:
        options = Options.checked(custom, own.get("custom_params"), config)
        check_kind(getattr(obj, "session_params", None), params.get("beam_width"))
        check_media(obj, config)
    except ConfigError as error:
        refused(self).add(error.fault)
        raise
    told = Told(**msgspec.structs.asdict(options))
    if options.keep_prefix_or(config) == SYSTEM and (found := instructions_of(obj, input_ids)) is not None:
        instructions = Instructions(found.spans, largest_view(config, self.context_len), found.how)
        told = msgspec.structs.replace(told, keep_prefix=found.dense, instructions=instructions)
    if told != Told() or (custom or {}).get("laprox"):
        # Requests of one batch may share what their client sent.
        obj.sampling_params = params | {"custom_params": (custom or {}) | {"laprox": told.seal()}}


def instructions_of(obj: GenerateRequest, input_ids: list[int]) -> Found | None:
    """Where they are in its tokens; None where no chat template told."""
    if isinstance(obj.input_ids, ChatPrompt):
        return obj.input_ids.found
    return obj.text.look(input_ids) if isinstance(obj.text, ChatText) else None


def check_media(obj: GenerateRequest, config: Config) -> None:
    """Refuses what else than text and pictures a request has."""
    for name in ("video_data", "audio_data"):
        if getattr(obj, name, None) and OTHER_MULTIMODAL.name not in config.untested:
            raise ConfigError(
                f"{name}: with --enable-laprox only pictures were tried; send those, or start the server "
                f"with --laprox-untested {OTHER_MULTIMODAL.name}",
                "unsupported",
            )


def with_plain_text(
    original: Callable[..., object],
    self: TokenizerManager,
    obj: GenerateRequest,
    input_text: object,
    *given: object,
    **named: object,
) -> object:
    """One of the two ways to the scheduler takes no text that is more than text."""
    plain = str(input_text) if isinstance(input_text, ChatText) else input_text
    return original(self, obj, plain, *given, **named)


def refused(manager: TokenizerManager) -> Refused:
    return attached(manager, "_laprox_refused", Refused)


def export_refused(result: None, self: TokenizerManager) -> None:
    if self.enable_metrics:
        refused(self).export(self.metrics_collector.labels)


async def add_refused(
    original: Callable[[TokenizerManager], Awaitable[list[dict[str, Any]]]], self: TokenizerManager
) -> list[dict[str, Any]]:
    """Totals come from the scheduler, which most refused requests never reach."""
    states = await original(self)
    # The hook stays in a process whose next engine is stock.
    if config_of(self.server_args) is not None:
        laprox = states[0]["laprox"]
        counts = Counter(laprox["refused"]) + Counter(refused(self).to_dict())
        # Of several tokenizer workers each knows its own; the metric adds them up.
        laprox["refused"] = None if self.server_args.tokenizer_worker_num > 1 else dict(counts)
    return states


TARGET = "sglang.srt.managers.tokenizer_manager.TokenizerManager."
SEAMS = (
    Seam(
        TARGET + "_validate_one_request",
        check_options,
        HookType.AFTER,
        ("self", "obj", "input_ids"),
        "None",
    ),
    Seam(
        TARGET + "_create_tokenized_object",
        with_plain_text,
        HookType.AROUND,
        ("self", "obj", "input_text", "input_ids", "input_embeds", "mm_inputs", "token_type_ids"),
        "Union[TokenizedGenerateReqInput, TokenizedEmbeddingReqInput]",
    ),
    Seam(TARGET + "init_metric_collector_watchdog", export_refused, HookType.AFTER, ("self",)),
    Seam(
        "sglang.srt.managers.tokenizer_control_mixin.TokenizerControlMixin.get_internal_state",
        add_refused,
        HookType.AROUND,
        ("self",),
        "List[Dict[Any, Any]]",
    ),
)
