"""KV pool: one tensor over all layers, so that a slot is a page of cells; and room beside it."""

import logging
from collections.abc import Callable

import torch
from sglang.srt.arg_groups.overrides import resolved_view
from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.attached import attach_reserved, config_of
from laprox_patches.model.ranks import ranks_here
from laprox_patches.seam import Seam
from laprox_sglang.cache.pool import LaproxKVPool
from laprox_sglang.options.refusals import OTHER_QUANTIZED
from laprox_sglang.ports import Pool, PoolConfigurator
from laprox_sglang.views.memory import Itemsizes, needs

logger = logging.getLogger(__name__)


def build_pool(original: Callable[..., Pool], self: PoolConfigurator, **kwargs: object) -> Pool:
    if self.is_draft_worker:
        return original(self, **kwargs)
    # With --kv-cache-dtype auto it is the checkpoint's, which no flag says.
    if self.kv_cache_dtype.itemsize < 2 and self.kv_cache_dtype != torch.float8_e4m3fn:
        # Not an Exception: SGLang would log a traceback of it.
        raise SystemExit(
            f"laprox: --model-path {self.server_args.model_path} keeps its KV as {self.kv_cache_dtype}, and "
            f"{OTHER_QUANTIZED}: give --kv-cache-dtype fp8_e4m3 or bfloat16"
        )
    return original(self, **kwargs | {"mha_pool_class": LaproxKVPool})


def leave_room(available: int, self: PoolConfigurator, pre_model_load_memory: int) -> int:
    config, args = config_of(self.server_args), resolved_view(self.server_args)
    assert config is not None
    itemsizes = Itemsizes(self.kv_cache_dtype.itemsize, self.model_config.dtype.itemsize)
    parts = needs(config, self.model_config, ranks_here().size, args, itemsizes, available)
    total = sum(parts.values())
    attach_reserved(self.server_args, total)
    listed = ", ".join(f"{what} {size / 1e6:.0f}" for what, size in parts.items())
    logger.info("LaProx reserves %.0f MB beside the KV pool (%s)", total / 1e6, listed)
    if total >= available:
        # Not an Exception: SGLang would log a traceback of it.
        raise SystemExit(
            f"laprox: {total / 1e9:.1f} GB for LaProx ({listed} MB) leave nothing of "
            f"{available / 1e9:.1f} GB to the KV pool: lower --context-length, --max-running-requests or "
            "--laprox-budget, or raise --mem-fraction-static"
        )
    return available - total


TARGET = "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator."
SEAMS = (
    Seam(
        TARGET + "_build_mha_kv_pool",
        build_pool,
        HookType.AROUND,
        ("self", "max_total_num_tokens", "mha_pool_class", "quant_method"),
        "KVCache",
    ),
    Seam(
        TARGET + "_profile_available_bytes",
        leave_room,
        HookType.AFTER,
        ("self", "pre_model_load_memory"),
        "int",
    ),
)
