"""The benchmark's command line: what is asked for, and what of it cannot be done."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import requests

from benchmarks.serving.servers import Service
from benchmarks.serving.workload import SERVERS
from benchmarks.serving.workloads import FAMILIES, workloads


class UsageError(Exception):
    """Something asked for that cannot be done; the message is one line."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def family(name: str) -> str:
    """What a workload may also be called on the command line."""
    head = name.split("-")[0]
    return head if head in FAMILIES else name


def parse(arguments: list[str], description: str | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.serving",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(dict.fromkeys(map(family, workloads(False))))
    parser.add_argument("--workload", metavar="NAMES", help=f"comma-separated, all by default: {names}")
    parser.add_argument(
        "--server", metavar="NAMES", help=f"comma-separated, all by default: {', '.join(SERVERS)}"
    )
    parser.add_argument(
        "--backend", metavar="NAME", help="--attention-backend of stock and LaProx; rows of its own"
    )
    parser.add_argument("--quick", action="store_true", help="everything in small; runs without a GPU too")
    parser.add_argument(
        "--json",
        metavar="FILE",
        type=Path,
        help="merge the rows into FILE; in a folder it is serving-CHIP.json",
    )
    parser.add_argument("--again", action="store_true", help="measure what FILE holds of this commit, too")
    parser.add_argument(
        "--attach",
        metavar="stock=URL,laprox=URL",
        help="drive servers that run already; their KV pool must be the one that the workload means",
    )
    return parser.parse_args(arguments)


def choose(text: str | None, offered: Sequence[str], what: str, aliases: Sequence[str] = ()) -> list[str]:
    """The names that were asked for, in the order in which they are offered."""
    if text is None:
        return list(offered)
    wanted = [name.strip() for name in text.split(",")]
    if unknown := [name for name in wanted if name not in (*offered, *aliases)]:
        known = ", ".join(dict.fromkeys(map(family, offered)))
        raise UsageError(f"no {what} {', '.join(map(repr, unknown))}; there are {known}")
    return [name for name in offered if name in wanted or family(name) in wanted]


def attached(text: str, servers: list[str]) -> list[Service]:
    pairs = dict(part.partition("=")[::2] for part in text.split(","))
    if unknown := [name for name in pairs if name not in SERVERS]:
        raise UsageError(
            f"--attach takes NAME=URL of {', '.join(SERVERS)}, not {', '.join(map(repr, unknown))}"
        )
    services = []
    for name in (name for name in servers if name in pairs):
        try:
            services.append(Service(name, pairs[name].rstrip("/")))
        except (requests.RequestException, KeyError) as error:
            raise UsageError(f"no SGLang server answers at {pairs[name]!r}: {type(error).__name__}") from None
        if services[-1].kind != name:
            raise UsageError(f"the server at {pairs[name]} is {services[-1].kind}, not {name}")
    if not services:
        raise UsageError(f"--attach gives {', '.join(pairs)}, and --server asks for {', '.join(servers)}")
    return services
