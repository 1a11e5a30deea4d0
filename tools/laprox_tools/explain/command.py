"""``laprox explain``: sends a prompt to a server, and draws what LaProx kept of it."""

import argparse
import sys
from pathlib import Path
from typing import Any

from laprox_sglang.options.values import parse_budget
from laprox_tools import CommandError
from laprox_tools.http_client import ServerClient

FORMATS = (".png", ".html")
ANSWER_TOKENS = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("url", help="of the server, as http://127.0.0.1:30000")
    add("--prompt", required=True, metavar="FILE|-|TEXT", help="a file, - for standard input, or the text")
    add("--question", help="asked behind the prompt: it decides what is kept")
    add("--budget", help="--laprox-budget of this request (default: the server's)")
    add("--out", type=Path, metavar="FILE.png|FILE.html", help="the picture (default: in the terminal)")
    add(
        "--tokens",
        type=int,
        default=ANSWER_TOKENS,
        help=f"of the answer, from 2 (default {ANSWER_TOKENS})",
    )
    add("--raw", action="store_true", help="send the text as it is, without the server's chat template")
    add("--api-key", help="of the server")


def run(arguments: argparse.Namespace) -> int:
    from laprox_tools.explain.kept import kept_of
    from laprox_tools.explain.token_text import pieces_of

    out: Path | None = arguments.out
    if out is not None and (out.suffix not in FORMATS or not out.parent.is_dir()):
        raise CommandError(f"--out {out}: give a .png or .html in a folder that exists")
    text = prompt_text(arguments.prompt, arguments.question)
    options: dict[str, Any] = {"return_kept": True}
    if arguments.budget is not None:
        options["budget"] = parse_budget(arguments.budget)
    server = ServerClient(arguments.url, arguments.api_key)
    model = Path(str(server.info().get("model_path", "model"))).name
    ids = tokenize(server, text, arguments.raw)
    reply = server.generate(ids, arguments.tokens, options)
    kept = kept_of(model, reply, pieces_of(ids, server.detokenize), len(ids))
    if out is None:
        from laprox_tools.explain import terminal

        terminal.draw(kept)
        return 0
    if out.suffix == ".png":
        from laprox_tools.explain import png

        png.draw(kept, out)
    else:
        from laprox_tools.explain.page import page

        try:
            # A prompt may hold halves of characters that no file can.
            out.write_bytes(page(kept).encode(errors="replace"))
        except OSError as error:
            raise CommandError(f"{out} cannot be written: {error.strerror}") from None
    print(kept.headline)
    print(f"Written to {out}.")
    return 0


def prompt_text(given: str, question: str | None) -> str:
    try:
        text = sys.stdin.read() if given == "-" else Path(given).read_text()
    except UnicodeDecodeError as error:
        raise CommandError(f"--prompt {given} holds no text: {error}") from None
    except (OSError, ValueError) as error:
        if not any(c.isspace() for c in given):
            raise CommandError(f"--prompt {given} is no file that can be read, and no text") from error
        text = given
    if question:
        text = f"{text.rstrip()}\n{question}"
    if not text.strip():
        raise CommandError("--prompt is empty")
    return text


def tokenize(server: ServerClient, text: str, raw: bool) -> list[int]:
    """A chat with this one message; the text alone where that is asked for, or the server has no template."""
    if not raw:
        try:
            return server.tokenize(text, chat=True)
        except CommandError as error:
            print(f"Sent as it is, not as a chat: {error}", file=sys.stderr)
    return server.tokenize(text, chat=False)
