"""Prefix cache: SGLang's own tree, with views."""

from sglang.srt.mem_cache.registry import (
    TreeCacheBuildContext,
    create_unified_radix_cache,
    register_radix_cache_backend,
    registered_radix_cache_backends,
)

from laprox_sglang.attention.backend import LaproxAttention
from laprox_sglang.cache.tree import LaproxCache

NAME = "laprox"


def make_cache(context: TreeCacheBuildContext) -> LaproxCache:
    """SGLang's factory for ``--radix-cache-backend laprox``."""
    cache: LaproxCache = create_unified_radix_cache(context, cache_class=LaproxCache)
    backend = context.tp_worker.model_runner.attn_backend
    assert isinstance(backend, LaproxAttention)
    cache.config, cache.report = backend.laprox.config, backend.laprox.report
    return cache


def register_cache() -> None:
    """Safe to call again."""
    if NAME not in registered_radix_cache_backends():
        register_radix_cache_backend(NAME, make_cache)
