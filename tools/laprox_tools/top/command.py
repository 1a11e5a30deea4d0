"""``laprox top``: watches one or several servers."""

import argparse
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from laprox_tools import CommandError
from laprox_tools.http_client import ServerClient
from laprox_tools.top.snapshot import Snapshot, snapshot

# A server that takes longer says so in its panel; the others go on.
SECONDS = 5
PICTURE_WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("urls", nargs="+", metavar="URL", help="of a server, as http://127.0.0.1:30000")
    add("--interval", type=interval, default=1.0, metavar="SECONDS", help="between looks (default 1)")
    add("--once", action="store_true", help="print one frame and exit; 1 if a server could not be watched")
    add("--svg", type=Path, metavar="FILE", help="with --once: write the frame as a picture, too")
    add("--api-key", help="of the servers")


def interval(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text} must be from 0.1 to 3600")
    return seconds


class Watch:
    """One server, and what it said the last two times."""

    def __init__(self, url: str, key: str | None) -> None:
        self._server = ServerClient(url, key, SECONDS)
        self.name = self._server.url
        # Set as one: the frame is drawn by another thread.
        self.state: tuple[Snapshot | None, Snapshot | None, str | None] = None, None, "not asked yet"

    def look(self) -> None:
        now = self.state[0]
        try:
            self.state = snapshot(self._server.info(), time.monotonic()), now, None
        except CommandError as error:
            self.state = None, None, str(error)
        except Exception as error:
            # Whatever is not there, or not what it was: a panel that stands still would say that all is well.
            fault = f"{type(error).__name__} {error} in /server_info"
            self.state = None, None, f"another version of LaProx is there: {fault}"

    def keep_looking(self, seconds: float) -> None:
        while True:
            self.look()
            time.sleep(seconds)


def run(arguments: argparse.Namespace) -> int:
    if arguments.svg and not arguments.once:
        raise CommandError("--svg goes with --once")
    watches = [Watch(url, arguments.api_key) for url in arguments.urls]
    if arguments.once:
        return once(watches, arguments.svg)
    watch(watches, arguments.interval)
    return 0


def frame(watches: Sequence[Watch]) -> Any:
    from rich.console import Group

    from laprox_tools.top.panel import panel

    return Group(*(panel(watch.name, *watch.state) for watch in watches))


def once(watches: Sequence[Watch], svg: Path | None) -> int:
    from rich.console import Console

    threads = [threading.Thread(target=watch.look) for watch in watches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    Console(highlight=False).print(frame(watches))
    if svg is not None:
        write_picture(watches, svg)
    return int(any(fault is not None for *_, fault in (watch.state for watch in watches)))


def write_picture(watches: Sequence[Watch], path: Path) -> None:
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), record=True, width=PICTURE_WIDTH, highlight=False)
    console.print(frame(watches))
    picture = console.export_svg(title="laprox top")
    # Rich names fonts of a server on the network; a picture fetches nothing.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    try:
        path.write_text(picture)
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}") from None


def watch(watches: Sequence[Watch], seconds: float) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    if not console.is_terminal:
        raise CommandError("standard output is no terminal: ask for --once")
    # Daemons: a server that does not answer must not hold up Ctrl-C.
    for each in watches:
        threading.Thread(target=each.keep_looking, args=(seconds,), daemon=True).start()
    with Live(frame(watches), console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(frame(watches), refresh=True)
            time.sleep(min(seconds, 0.5))
