"""``laprox COMMAND``."""

import argparse
import sys
from collections.abc import Sequence
from typing import Protocol

from laprox_sglang.options.values import ConfigError
from laprox_tools import CommandError

SUMMARIES = {
    "doctor": "check machine, installation, hooks, and the flags of a server",
    "plan": "how many requests a GPU holds, with LaProx and without, and when it pays",
    "top": "watch servers: pool, requests, rates",
    "explain": "send a prompt and draw what LaProx kept of it",
}


class Command(Protocol):
    """The module ``command`` of a command's folder."""

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None: ...

    def run(self, arguments: argparse.Namespace, /) -> int:
        """Returns the exit code.

        Raises:
            CommandError, ConfigError: what was asked cannot be done.
        """
        ...


def load(name: str) -> Command:
    """Imports only the command that is asked for: help must not wait for PyTorch."""
    match name:
        case "doctor":
            from laprox_tools.doctor import command as doctor

            return doctor
        case "plan":
            from laprox_tools.plan import command as plan

            return plan
        case "top":
            from laprox_tools.top import command as top

            return top
        case "explain":
            from laprox_tools.explain import command as explain

            return explain
    raise KeyError(name)


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="laprox", description="Tools for SGLang servers with LaProx.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in SUMMARIES.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if argv[:1] == [name]:
            module = load(name)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    arguments = parser.parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except (CommandError, ConfigError) as error:
        print(f"laprox {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
