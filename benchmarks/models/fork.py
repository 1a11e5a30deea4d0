"""Work in forks of this process, which has imported SGLang: an import is 13 seconds of CPU."""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Fork:
    """A process with a log of its own, that ends with whatever it has started."""

    def __init__(self, work: Callable[[], Any], log: Path) -> None:
        """
        Args:
            work: what it does; the result must be JSON.
            log: where it writes; the result is put beside it.
        """
        self._log, self._result = log, log.with_suffix(".json")
        self._pid = os.fork()
        if not self._pid:
            self._run(work)

    def _run(self, work: Callable[[], Any]) -> None:
        from sglang.srt.utils import kill_itself_when_parent_died

        os.setsid()
        # As SGLang's processes do, so that none is left of a program that is ended.
        kill_itself_when_parent_died()
        output = os.open(self._log, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        try:
            self._result.write_text(json.dumps(work()))
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        # An engine's processes go with it.
        os.killpg(0, signal.SIGKILL)

    def wait(self, deadline: float) -> None:
        while not os.waitpid(self._pid, os.WNOHANG)[0]:
            if time.monotonic() > deadline:
                os.killpg(self._pid, signal.SIGKILL)
            time.sleep(0.1)

    @property
    def result(self) -> Any:
        """None where it failed; ``log`` says why."""
        return json.loads(self._result.read_text()) if self._result.exists() else None

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""
