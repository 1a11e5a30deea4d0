"""Entry point of the group ``sglang.srt.plugins``: SGLang calls ``load`` in every process it starts."""

from laprox_patches import arguments
from laprox_patches.seam import SeamError, install
from laprox_sglang.config import Config, ConfigError


def load() -> None:
    """Adds the flags; where LaProx was asked for, hooks SGLang.

    Raises:
        SystemExit: a bad configuration or a drifted hook target. SGLang swallows every Exception of
            a plugin, and would go on without the hooks.
    """
    try:
        install(arguments.SEAMS)
        if Config.from_environment() is not None:
            install_hooks()
    except (ConfigError, SeamError) as error:
        raise SystemExit(f"laprox: {error}") from None


def install_hooks() -> None:
    """Hooks SGLang in this process; safe to call again."""
    # Imported here: a server without LaProx must not load any of it.
    from sglang.srt.mem_cache.registry import register_radix_cache_backend, registered_radix_cache_backends

    from laprox_patches.seams import SEAMS
    from laprox_sglang.radix_cache import make_cache

    install(SEAMS)
    if "laprox" not in registered_radix_cache_backends():
        register_radix_cache_backend("laprox", make_cache)
