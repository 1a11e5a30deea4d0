"""Tokenizer manager: a bad per-request option fails that request, before there is one to schedule."""

from typing import Any

from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.seam import Seam
from laprox_sglang.config import ConfigError, Options


def check_options(result: None, self: Any, obj: Any, input_ids: list[int]) -> None:
    config = getattr(self.server_args, "_laprox", None)
    if config is None:
        return
    # SGLang merges the server's preferred parameters in only after this check.
    params = (self.preferred_sampling_params or {}) | (obj.sampling_params or {})
    Options.of(params.get("custom_params")).check(config, self.context_len)
    if getattr(obj, "session_params", None):
        raise ConfigError("session_params: sessions keep whole KV; --enable-laprox does not serve them")
    if (params.get("beam_width") or 1) > 1:
        raise ConfigError("beam_width: beams copy rows of whole KV; --enable-laprox does not serve them")


SEAMS = (
    Seam(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager._validate_one_request",
        check_options,
        HookType.AFTER,
        ("self", "obj", "input_ids"),
        "None",
    ),
)
