"""The list of one-line faults is of the code as it is. ``python tests/mutations.py`` tries them."""

import ast
from pathlib import Path

import pytest

from fresh import ROOT
from mutations import Mutation, Stale, fate, mutations

ALL = mutations()


@pytest.mark.parametrize("mutation", ALL, ids=lambda mutation: mutation.what)
def test_a_mutation_applies_and_names_tests(mutation: Mutation) -> None:
    text = (ROOT / mutation.file).read_text()
    changed = mutation.applied(text)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text))
    if mutation.equivalent is None:
        files = [argument for argument in mutation.pytest if argument.startswith("tests/")]
        assert files and all((ROOT / file).is_file() for file in files)


def test_there_are_as_many_as_it_takes() -> None:
    assert len(ALL) >= 25
    assert len({mutation.what for mutation in ALL}) == len(ALL)


def test_a_mutation_of_other_code_is_refused() -> None:
    mutation = Mutation("a fault", "x.py", "a = 1", "a = 2")
    assert mutation.applied("a = 1\n") == "a = 2\n"
    for text in ("a = 3\n", "a = 1\na = 1\n"):
        with pytest.raises(Stale, match=r"x\.py has 'a = 1' [02] times, not once"):
            mutation.applied(text)


@pytest.mark.parametrize(
    ("body", "said"), [("assert True", "survived"), ("assert False", "killed"), ("(", "not tried: ")]
)
def test_only_a_test_that_fails_kills(tmp_path: Path, body: str, said: str) -> None:
    (tmp_path / "test_it.py").write_text(f"def test_it():\n    {body}\n")
    assert fate(tmp_path, ["test_it.py"]).startswith(said)
