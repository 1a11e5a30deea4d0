"""The documents as the tests read them: pages, code blocks, links, headings."""

import re
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# A block that begins so starts a server.
STARTS = ("python -m sglang.launch_server", "sglang serve")
OUTPUT = ("text", "json", "console")


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    language: str
    code: str

    @property
    def starts_a_server(self) -> bool:
        return self.language == "bash" and self.code.startswith(STARTS)

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.code.splitlines()[0][:60]}"


def pages() -> list[Path]:
    """Every page of the repository."""
    folders = (ROOT / name for name in ("docs", "examples", "benchmarks", "tools"))
    return sorted([*ROOT.glob("*.md"), *(page for folder in folders for page in folder.rglob("*.md"))])


def documents() -> list[Path]:
    """Those whose commands are run: the ones at the root and in ``docs``."""
    return [page for page in pages() if page.parent in (ROOT, ROOT / "docs")]


def blocks(page: Path) -> list[Block]:
    return [Block(page, language, dedent(code)) for _, language, code in FENCE.findall(page.read_text())]


def prose(page: Path) -> str:
    """A page without its blocks."""
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Where a link into the page may point to, as GitHub names its headings."""
    headings = re.findall(r"^#+ +(.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows(page: Path) -> list[list[str]]:
    """Cells of all tables, row by row; heads and rules among them."""
    lines = [line for line in prose(page).splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def quoted(text: str) -> set[str]:
    """What stands in backticks."""
    return set(re.findall(r"`([^`\n]+)`", text))


def section(page: Path, heading: str) -> str:
    """What stands below a heading, up to the next of its rank."""
    found = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^\1 |\Z)", page.read_text(), re.M | re.S)
    assert found, f"{page.name} has no heading {heading!r}"
    return found[2]
