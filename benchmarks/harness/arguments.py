"""Command lines: what all programs here have in common."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter


def parser(name: str, about: str | None, kind: type[ArgumentParser] = ArgumentParser) -> ArgumentParser:
    """Of ``python -m benchmarks.NAME``; ``about`` is shown as it is written."""
    return kind(f"python -m benchmarks.{name}", None, about, formatter_class=RawDescriptionHelpFormatter)
