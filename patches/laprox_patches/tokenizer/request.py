"""Tokenizer manager: a bad per-request option fails that request, before there is one to schedule; and what
the template knows of a prompt is added to the options of its request."""

from collections.abc import Awaitable, Callable
from typing import Any

from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.attached import attached, config_of
from laprox_patches.seam import Seam
from laprox_sglang.options.refusals import OTHER_MULTIMODAL
from laprox_sglang.options.request import Options
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
    # SGLang merges the server's preferred parameters in only after this check.
    params = (self.preferred_sampling_params or {}) | own
    try:
        options = Options.of(params.get("custom_params"))
        Options.check_allowed(own.get("custom_params"), config)
        options.check(config)
        check_request(obj, params, config)
    except ConfigError as error:
        refused(self).add(error.fault)
        raise
    if options.keep_prefix_or(config) == SYSTEM and (found := instructions_of(obj, input_ids)) is not None:
        most = largest_view(config, self.context_len)
        obj.sampling_params = with_instructions(params, found, most)


def instructions_of(obj: GenerateRequest, input_ids: list[int]) -> Found | None:
    """Where they are in its tokens; None where no chat template told."""
    if isinstance(obj.input_ids, ChatPrompt):
        return obj.input_ids.found
    return obj.text.look(input_ids) if isinstance(obj.text, ChatText) else None


def check_request(obj: GenerateRequest, params: dict[str, Any], config: Config) -> None:
    """Refuses what else a request may ask for that LaProx does not serve."""
    serves = "--enable-laprox does not serve them"
    if getattr(obj, "session_params", None):
        raise ConfigError(f"session_params: sessions keep whole KV; {serves}", "unsupported")
    if (params.get("beam_width") or 1) > 1:
        raise ConfigError(f"beam_width: beams copy rows of whole KV; {serves}", "unsupported")
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
    """Totals come from the scheduler, which a refused request never reaches."""
    states = await original(self)
    # The hook stays in a process whose next engine is stock.
    if config_of(self.server_args) is not None:
        states[0]["laprox"]["refused"] = refused(self).to_dict()
    return states


def with_instructions(params: dict[str, Any], found: Found, most: int) -> dict[str, Any]:
    """Sampling parameters that say in tokens what "system" means for their prompt.

    Args:
        most: slots of the largest view that there is memory for.
    """
    custom = params.get("custom_params") or {}
    told = {"spans": found.spans, "most": most, "how": found.how}
    laprox = (custom.get("laprox") or {}) | {"keep_prefix": found.dense, "instructions": told}
    return params | {"custom_params": custom | {"laprox": laprox}}


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
