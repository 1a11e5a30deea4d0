"""Servers for the tests: the 7M model on a CPU, with SGLang's own leak checks after every step."""

import tempfile
from pathlib import Path
from types import TracebackType

from benchmarks.harness import server as harness
from benchmarks.harness.server import CPU_FLAGS, Launch
from laprox_tools.needle import MODEL_PATH

ROOT = Path(__file__).resolve().parent.parent
# On every page, in every server of every test.
STRICT = {"SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1", "SGLANG_CHECK_KV_PAGE_INVARIANTS": "1"}
# The Rust core, SGLang's default, serves in most tests.
PYTHON_CORE = {"SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND": "python"}


def command(*flags: str) -> list[str]:
    return harness.command("--model-path", str(MODEL_PATH), *CPU_FLAGS, *flags)


class Server(harness.Server):
    """Context manager around a server with ``tokens`` KV slots; ``environment`` are variables for it."""

    def __init__(self, *flags: str, tokens: int = 40_000, **environment: str) -> None:
        self._logs = tempfile.TemporaryDirectory(prefix="laprox-server-")
        arguments = ["--model-path", str(MODEL_PATH), *CPU_FLAGS, "--max-total-tokens", str(tokens), *flags]
        log = Path(self._logs.name) / "server.log"
        # From the repository root, where a folder `kernels` lies in wait for SGLang's import of that name.
        launch = Launch("under test", arguments, log, environment=STRICT | environment, folder=ROOT)
        super().__init__(launch)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        dead = self.code is not None
        try:
            super().__exit__(kind, error, trace)
        finally:
            if dead or error is not None:
                print(self.launch.log.read_text(errors="replace")[-6000:])
            self._logs.cleanup()
