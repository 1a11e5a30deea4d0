"""KV pool: one tensor over all layers, so that a slot is a page of cells."""

from collections.abc import Callable
from typing import Any

from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.seam import Seam
from laprox_sglang.pool import LaproxKVPool


def build_pool(original: Callable[..., Any], self: Any, **kwargs: Any) -> Any:
    return original(self, **kwargs | {"mha_pool_class": LaproxKVPool})


def build_platform_pool(original: Callable[..., Any], self: Any, *, max_total_num_tokens: int) -> Any:
    # An out-of-tree platform brings a pool of its own; the reference CPU platform's is the stock one.
    return self._build_mha_kv_pool(max_total_num_tokens=max_total_num_tokens, mha_pool_class=LaproxKVPool)


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
        TARGET + "_build_oot_mha_kv_pool",
        build_platform_pool,
        HookType.AROUND,
        ("self", "max_total_num_tokens"),
        "KVCache",
    ),
)
