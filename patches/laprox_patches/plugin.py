"""Entry point of the group ``sglang.srt.plugins``: SGLang calls ``load`` in every process it starts.

Nobody imports this module. It imports the others late, for another SGLang than the one served may not
even have what they import.
"""

import logging
import os
import sys

from laprox_patches.seam import SeamError, register
from laprox_sglang.options.server import ENVIRONMENT, Config
from laprox_sglang.options.values import ConfigError

logger = logging.getLogger(__name__)


def load() -> None:
    """Adds the flags; where LaProx was asked for, hooks SGLang.

    Raises:
        SystemExit: LaProx was asked for, and its configuration is bad or this SGLang is not served.
            SGLang swallows every Exception of a plugin, and would go on without the hooks.
    """
    asked_for = ENVIRONMENT in os.environ or "--enable-laprox" in sys.argv
    try:
        hook()
    except (ConfigError, SeamError) as error:
        if asked_for:
            raise SystemExit(f"laprox: {error}") from None
        logger.warning("laprox: not available: %s", error)
    except Exception as error:
        if asked_for:
            raise SystemExit(f"laprox: could not be loaded: {type(error).__name__}: {error}") from error
        raise


def hook() -> None:
    from laprox_patches.version import check_version

    check_version()
    from laprox_patches import arguments

    register(arguments.SEAMS)
    if Config.from_environment() is not None:
        # Imported here: a server without LaProx must not load any of it.
        from laprox_patches.seams import register_all

        register_all()
