"""``laprox COMMAND``. Commands are imported one at a time: help must not wait for PyTorch."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from laprox_sglang.cli import CommandError
from laprox_sglang.options.values import ConfigError

COMMANDS = {
    "doctor": "check machine, installation, hooks, and the flags of a server",
    "plan": "how many requests a GPU holds, with LaProx and without, and when it pays",
    "top": "watch servers: pool, requests, rates",
    "explain": "send a prompt and draw what LaProx kept of it",
}


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="laprox", description="Tools for SGLang servers with LaProx.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if argv[:1] == [name]:
            module = import_module(f"laprox_sglang.cli.{name}")
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
