"""Tokenizer manager: a bad per-request option fails that request, before there is one to schedule; and what
the template knows of a prompt is added to the options of its request."""

from typing import Any

from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.seam import Seam
from laprox_sglang.config import SYSTEM, ConfigError, Options
from laprox_sglang.prefix import ChatPrompt


def check_options(result: None, self: Any, obj: Any, input_ids: list[int]) -> None:
    config = getattr(self.server_args, "_laprox", None)
    if config is None:
        return
    # SGLang merges the server's preferred parameters in only after this check.
    params = (self.preferred_sampling_params or {}) | (obj.sampling_params or {})
    options = Options.of(params.get("custom_params"))
    options.check(config, self.context_len)
    if getattr(obj, "session_params", None):
        raise ConfigError("session_params: sessions keep whole KV; --enable-laprox does not serve them")
    if (params.get("beam_width") or 1) > 1:
        raise ConfigError("beam_width: beams copy rows of whole KV; --enable-laprox does not serve them")
    instructions = obj.input_ids.instructions if isinstance(obj.input_ids, ChatPrompt) else 0
    if instructions and options.keep_prefix_or(config) == SYSTEM:
        obj.sampling_params = with_keep_prefix(params, instructions)


def with_keep_prefix(params: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Sampling parameters that say in tokens what "system" means for their prompt."""
    custom = params.get("custom_params") or {}
    laprox = (custom.get("laprox") or {}) | {"keep_prefix": tokens}
    return params | {"custom_params": custom | {"laprox": laprox}}


SEAMS = (
    Seam(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager._validate_one_request",
        check_options,
        HookType.AFTER,
        ("self", "obj", "input_ids"),
        "None",
    ),
)
