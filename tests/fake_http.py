"""A server that says what it is told to."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# By path: an answer, or a function of the request's body that makes one. An answer is a status and JSON.
Answers = dict[str, tuple[int, Any] | Callable[[Any], tuple[int, Any]]]


@contextmanager
def fake_http(answers: Answers, headers: list[Any] | None = None) -> Iterator[str]:
    """The URL of a server; ``headers`` collects those of the requests."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *given: Any) -> None:
            pass

        def do_GET(self) -> None:
            if headers is not None:
                headers.append(dict(self.headers))
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            answer = answers.get(self.path, (404, {"detail": "Not Found"}))
            status, content = answer(body) if callable(answer) else answer
            said = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_POST = do_GET

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            # A thread whose socket is closed under it would spin to the end of the run.
            server.shutdown()
