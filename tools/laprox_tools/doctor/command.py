"""``laprox doctor``: what is wrong with this machine, this installation, or the flags of a server."""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from laprox_tools.doctor import dry_run
from laprox_tools.doctor.finding import Area, Finding
from laprox_tools.doctor.installation import check_installation, found, served
from laprox_tools.doctor.machine import check_machine
from laprox_tools.doctor.template import check_template

SECONDS = 300
MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}

hooks = Area("hooks")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--model", type=Path, metavar="FOLDER", help="say where its chat template puts instructions"
    )
    parser.add_argument(
        "--chat-template", type=Path, metavar="FILE", help="with --model: instead of the model's own"
    )
    parser.add_argument(
        "flags",
        nargs=argparse.REMAINDER,
        metavar="-- FLAGS",
        help="flags of a server, or its whole command line, to be checked as its start would",
    )


def run(arguments: argparse.Namespace) -> int:
    flags = arguments.flags[1:] if arguments.flags[:1] == ["--"] else arguments.flags
    findings = [*check_machine(), *check_installation(), *check_start(flags)]
    if arguments.model is not None:
        findings += check_template(arguments.model, arguments.chat_template)
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode({"findings": findings})).decode())
    else:
        draw(findings)
    return int(any(finding.status == "error" for finding in findings))


def check_start(flags: Sequence[str]) -> Iterator[Finding]:
    """Hooks and flags, as a dry run in a process of its own finds them."""
    if found("sglang") is None or found("sglang") != served():
        yield hooks.warning("start", "not tried: SGLang is missing or another one", "see installation")
        return
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        # -P: a folder of the place where this is called must not stand for a package.
        command = [sys.executable, "-P", "-m", dry_run.__name__, str(report), *flags]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            yield hooks.error("start", f"not done after {SECONDS} s", "try again on an idle machine")
            return
        if report.exists():
            yield from msgspec.json.decode(report.read_bytes(), type=list[Finding])
            return
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        yield hooks.error("start", f"ended with {done.returncode}: {last}", "report it with this line")


def draw(findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for area in dict.fromkeys(finding.area for finding in findings):
        console.print(Text(area, style="bold"))
        table = Table.grid(padding=(0, 1))
        for finding in findings:
            if finding.area == area:
                mark, colour = MARKS[finding.status]
                reason = Text(finding.reason)
                if finding.fix and finding.status != "ok":
                    reason.append(f"\n→ {finding.fix}", style=colour)
                table.add_row(f"  [{colour}]{mark}[/]", Text(finding.name, style="dim"), reason)
        console.print(table)
    counts = {status: sum(finding.status == status for finding in findings) for status in MARKS}
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()))
