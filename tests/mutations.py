"""Do the tests notice one-line faults of the code? Those of ``mutations.toml`` are tried.

    python tests/mutations.py [WORD …]     # all, or those whose words or file contain one of these

Each fault is made in a copy of the tree, and the tests that are named for it must fail there; without the
fault they must pass. Exits with 1 where a fault survives.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import msgspec

from fresh import ROOT, python

LIST = Path(__file__).with_suffix(".toml")
PACKAGES = (".", "kernels", "patches", "tools")
FATES = {0: "survived", 1: "killed"}
# A fault may make a loop that does not end.
SECONDS = 600
# Where SGLang is imported already, a few modules of the tree are, too: those of the copy take their place.
PYTEST = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
for name in [name for name in sys.modules if name.startswith("laprox_")]:
    del sys.modules[name]
import pytest
sys.exit(pytest.main(sys.argv[2:]))
"""


class Stale(ValueError):
    """The code that a mutation changes is not there any more, or there more than once."""


class Mutation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """
    Attributes:
        file: which file, from the root.
        line, instead: what stands there exactly once, and what it becomes.
        tests: arguments of pytest; all that follows ``-k`` is one of them.
        equivalent: why nobody could notice.
    """

    what: str
    file: str
    line: str
    instead: str
    tests: str = ""
    equivalent: str | None = None

    def applied(self, text: str) -> str:
        """
        Raises:
            Stale: ``text`` is not the code that this was written for.
        """
        if (count := text.count(self.line)) != 1:
            raise Stale(f"{self.file} has {self.line!r} {count} times, not once: mend the list ({self.what})")
        return text.replace(self.line, self.instead)

    @property
    def pytest(self) -> list[str]:
        files, _, expression = self.tests.partition(" -k ")
        return [*shlex.split(files), *(["-k", expression] if expression else [])]


def mutations() -> list[Mutation]:
    return msgspec.convert(tomllib.loads(LIST.read_text())["mutation"], list[Mutation])


def copy(to: Path) -> None:
    """What git tracks, and what it would."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def fate(tree: Path, arguments: list[str]) -> str:
    """What pytest says in ``tree``: survived, killed, or why it could not run."""
    places = [str(tree / package) for package in PACKAGES]
    environment = {"PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""}
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not full", *arguments]
    if any("kernels" in argument for argument in arguments):
        # Triton's interpreter is switched on before Triton is imported.
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *arguments],
            cwd=tree,
            env=os.environ | environment | {"PYTHONPATH": os.pathsep.join(places)},
            capture_output=True,
            text=True,
        )
    else:
        done = python(PYTEST, json.dumps(places), *arguments, folder=tree, seconds=SECONDS, **environment)
    if done.returncode < 0:
        return "killed"
    said = (done.stdout + done.stderr).strip().splitlines() or ["no output"]
    return FATES.get(done.returncode) or f"not tried: {said[-1]}"


def attempt(tree: Path, mutation: Mutation) -> str:
    path = tree / mutation.file
    text = path.read_text()
    path.write_text(mutation.applied(text))
    try:
        return fate(tree, mutation.pytest)
    finally:
        path.write_text(text)


def main(words: list[str]) -> int:
    chosen = [
        mutation
        for mutation in mutations()
        if not words or any(word in f"{mutation.what} {mutation.file}" for word in words)
    ]
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        tree = Path(folder)
        copy(tree)
        sound: dict[str, str] = {}
        for mutation in chosen:
            said = f"equivalent: {mutation.equivalent}"
            if mutation.equivalent is None:
                if mutation.tests not in sound:
                    sound[mutation.tests] = fate(tree, mutation.pytest)
                said = sound[mutation.tests]
                said = attempt(tree, mutation) if said == "survived" else f"without it, too: {said}"
                survivors += said != "killed"
            print(f"{mutation.file}: {mutation.what}: {said}", flush=True)
    print(f"{len(chosen)} mutations, {survivors} of them not killed")
    return int(survivors > 0 or not chosen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
