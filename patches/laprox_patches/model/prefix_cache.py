"""Prefix cache: SGLang's own tree, with views."""

import logging

from sglang.srt.mem_cache.registry import (
    TreeCacheBuildContext,
    create_unified_radix_cache,
    register_radix_cache_backend,
    registered_radix_cache_backends,
)

from laprox_sglang.attention.backend import LaproxAttention
from laprox_sglang.cache.pool import LaproxKVPool
from laprox_sglang.cache.tree import LaproxCache
from laprox_sglang.views.capacity import EXAMPLE_PROMPT

logger = logging.getLogger(__name__)
NAME = "laprox"
# Times the pool.
WORTH_IT = 2


def make_cache(context: TreeCacheBuildContext) -> LaproxCache:
    """SGLang's factory for ``--radix-cache-backend laprox``."""
    cache: LaproxCache = create_unified_radix_cache(context, cache_class=LaproxCache)
    backend = context.tp_worker.model_runner.attn_backend
    assert isinstance(backend, LaproxAttention)
    cache.config, cache.report = backend.laprox.config, backend.laprox.report
    cache.shrink_view = backend.laprox.shrink_view
    if cache.host_pool_group is not None:
        say_host_tier(cache.host_pool_group.size, backend.laprox.pool, cache.writes_late)
    return cache


def say_host_tier(slots: int, pool: LaproxKVPool, writes_late: bool) -> None:
    """
    Args:
        slots: of the tier.
    """
    logger.info(
        "LaProx: %s slots of host memory, %.1f GB, hold %s histories of %s tokens; the pool has %s slots",
        f"{slots:,}",
        slots * pool.slot_bytes / 1e9,
        f"{slots // EXAMPLE_PROMPT:,}",
        f"{EXAMPLE_PROMPT:,}",
        f"{pool.size:,}",
    )
    if not writes_late and slots < WORTH_IT * pool.size:
        logger.warning(
            "LaProx: this host tier gains little: with --hicache-write-policy write_through it holds what "
            "the pool holds as well. Give write_back, or a tier of twice the pool"
        )


def register_cache() -> None:
    """Safe to call again."""
    if NAME not in registered_radix_cache_backends():
        register_radix_cache_backend(NAME, make_cache)
