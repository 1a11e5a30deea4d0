"""Entry point of the group ``sglang.srt.plugins``: SGLang calls ``load`` in every process it starts."""

import logging
import os
import sys

from laprox_patches import arguments
from laprox_patches.seam import SeamError, apply, register
from laprox_sglang.config import ENVIRONMENT, Config, ConfigError

logger = logging.getLogger(__name__)


def load() -> None:
    """Adds the flags; where LaProx was asked for, hooks SGLang.

    Raises:
        SystemExit: LaProx was asked for, and its configuration is bad or a hook target has drifted.
            SGLang swallows every Exception of a plugin, and would go on without the hooks.
    """
    try:
        register(arguments.SEAMS)
        if Config.from_environment() is not None:
            register_hooks()
    except (ConfigError, SeamError) as error:
        if ENVIRONMENT in os.environ or "--enable-laprox" in sys.argv:
            raise SystemExit(f"laprox: {error}") from None
        logger.warning("laprox: not available in this SGLang: %s", error)


def register_hooks() -> None:
    # Imported here: a server without LaProx must not load any of it.
    from sglang.srt.mem_cache.registry import register_radix_cache_backend, registered_radix_cache_backends

    from laprox_patches.seams import SEAMS
    from laprox_sglang.radix_cache import make_cache

    register(SEAMS)
    if "laprox" not in registered_radix_cache_backends():
        register_radix_cache_backend("laprox", make_cache)


def install_hooks() -> None:
    """Hooks SGLang in this process and sees that the hooks hold; safe to call again.

    Raises:
        SeamError: a hook target has drifted, or is held by somebody else.
    """
    from laprox_patches.seams import SEAMS

    register_hooks()
    apply((*arguments.SEAMS, *SEAMS))
