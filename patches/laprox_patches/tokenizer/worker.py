"""The application of a server's tokenizer workers (``--tokenizer-worker-num``): SGLang's, with our hooks.

SGLang loads plugins in every process but these, and takes their application by its name.
"""

from sglang.srt.plugins import load_plugins

load_plugins()

from sglang.srt.entrypoints.http_server import app  # noqa: E402

__all__ = ["app"]
