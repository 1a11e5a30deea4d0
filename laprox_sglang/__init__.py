"""LaProx inside SGLang: the cache is never pruned, a running request reads a compressed view of it."""

__all__ = ["Config", "Engine"]


def __getattr__(name: str) -> type:
    # Imported late: SGLang loads this package to look for platforms while it is itself being imported.
    if name == "Engine":
        from laprox_sglang.engine import Engine

        return Engine
    if name == "Config":
        from laprox_sglang.options.server import Config

        return Config
    raise AttributeError(f"module 'laprox_sglang' has no attribute {name!r}")
