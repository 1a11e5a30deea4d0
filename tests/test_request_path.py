"""How much somebody reads who follows one request through the engine, call by call."""

import ast
import sys
from collections import defaultdict
from pathlib import Path
from types import FrameType, SimpleNamespace

from documents import ROOT
from fakes import Scheduler, sglang_context
from laprox_patches.scheduler.output import add_facts
from test_runtime import PROMPT

# The rooms that docs/architecture.md leads a request through; kernels are a subject of their own.
ROOMS = ("patches/laprox_patches/scheduler", "laprox_sglang")
# A table of values, which nobody reads to follow a request.
DOOR = "laprox_sglang/options"
# mini-sglang's whole engine has 1,661.
MOST = 1500


def entered(run) -> dict[Path, set[int]]:
    """First lines of the functions that ``run`` calls, by file."""
    found = defaultdict(set)

    def look(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_name != "<module>":
            found[Path(frame.f_code.co_filename)].add(frame.f_code.co_firstlineno)

    sys.setprofile(look)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found


def lines_to_read(file: Path, first_lines: set[int]) -> set[int]:
    """Lines of these functions, and of the classes they stand in what is no other function."""
    read: set[int] = set()

    def visit(node: ast.AST) -> bool:
        """Whether something in ``node`` is read."""
        below = [visit(child) for child in ast.iter_child_nodes(node)]
        if isinstance(node, ast.FunctionDef):
            start = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            if start in first_lines:
                read.update(range(start, node.end_lineno + 1))
            return start in first_lines
        if isinstance(node, ast.ClassDef) and any(below):
            functions = (each for each in node.body if isinstance(each, ast.FunctionDef))
            others = {line for each in functions for line in range(each.lineno, each.end_lineno + 1)}
            read.update(set(range(node.lineno, node.end_lineno + 1)) - others)
        return any(below)

    visit(ast.parse(file.read_text()))
    return read


def test_one_request_passes_few_lines(figures) -> None:
    with sglang_context():
        scheduler = Scheduler(200)

        def one_request() -> None:
            req = scheduler.arrive(PROMPT, 6)
            while not req.finished():
                scheduler.step()
            add_facts({}, SimpleNamespace(tree_cache=scheduler.tree_cache), [req])

        calls = entered(one_request)
    here = {
        file: first
        for file, first in calls.items()
        if any(file.is_relative_to(ROOT / room) for room in ROOMS)
    }
    lines = {file: len(lines_to_read(file, first)) for file, first in here.items()}
    for name in ("step", "runtime", "prune", "tree", "decode_batch", "facts"):
        assert any(file.stem == name and lines[file] for file in lines), (
            f"the request does not pass {name}.py"
        )
    whole = sum(len(file.read_text().splitlines()) for file in lines)
    door = sum(count for file, count in lines.items() if file.is_relative_to(ROOT / DOOR))
    passed = sum(lines.values()) - door
    figures.append(
        f"one request passes {passed} lines, and {door} of options, of {whole} in its {len(lines)} files"
    )
    assert passed < MOST
