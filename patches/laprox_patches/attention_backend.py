"""Attention backend: every resolved one passes here, after the pools exist and before graph capture."""

import logging
from typing import Any

from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.seam import Seam
from laprox_sglang.attention import with_laprox
from laprox_sglang.config import Config
from laprox_sglang.runtime import Runtime

logger = logging.getLogger(__name__)


def wrap(backend: Any, runner: Any, full_attn_backend: Any) -> Any:
    config: Config = runner.server_args._laprox
    logger.info("LaProx prunes prompts in front of %s: %s", type(backend).__name__, config)
    pool, rows = runner.token_to_kv_pool, runner.req_to_token_pool.req_to_token
    return with_laprox(backend, Runtime(config, runner.model, pool, rows))


SEAMS = (
    Seam(
        "sglang.srt.layers.attention.attention_registry.attn_backend_wrapper",
        wrap,
        HookType.AFTER,
        ("runner", "full_attn_backend"),
    ),
)
