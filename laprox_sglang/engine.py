"""``sglang.Engine`` with LaProx, for programs that run the engine in their own process."""

import os
from typing import Any

from sglang.srt.entrypoints.engine import Engine as StockEngine

from laprox_sglang.options.server import ENVIRONMENT, Config


class Engine(StockEngine):  # type: ignore[misc]  # SGLang has no types
    """SGLang's engine with pruning on.

    Example:
        >>> engine = laprox_sglang.Engine(model_path=path, laprox={"budget": 0.1})  # doctest: +SKIP
    """

    def __init__(self, *, laprox: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """
        Args:
            laprox: options by the names of ``Config``; the rest goes to ``sglang.Engine``.

        Raises:
            TypeError, ConfigError: a bad option.
            RuntimeError: SGLang started without LaProx.
        """
        config = Config(**(laprox or {}))
        before = os.environ.get(ENVIRONMENT)
        os.environ[ENVIRONMENT] = config.to_json()
        try:
            super().__init__(**kwargs)
        finally:
            # The child processes have copied it by now. Left in place, it would turn LaProx on in a later
            # stock engine.
            if before is None:
                del os.environ[ENVIRONMENT]
            else:
                os.environ[ENVIRONMENT] = before
        if getattr(self.server_args, "_laprox", None) != config:
            # Where a plugin fails SGLang only logs it and starts as stock, which is not what was asked for.
            self.shutdown()
            raise RuntimeError(
                "laprox: SGLang started without LaProx: look for its plugin in the log, and name laprox in "
                "SGLANG_PLUGINS if that is set"
            )
