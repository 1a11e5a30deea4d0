"""How results are read and written: whole, or not at all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness.provenance import chip, fault_of


class RecordError(RuntimeError):
    """A results file that cannot be added to; the message is one line."""


def begun(
    path: Path | None, quick: bool, read: Callable[[Path], dict[str, Any]], **empty: Any
) -> dict[str, Any]:
    """What a results file holds so far; ``empty`` behind its head where it is not there yet.

    Raises:
        RecordError: it is of another benchmark, chip or size, or nothing can be written there.
    """
    head = {"chip": chip(), "quick": quick}
    if fault := fault_of(path):
        raise RecordError(fault)
    if path is None or not path.exists():
        return head | empty
    old = read(path)
    if {key: old[key] for key in head} != head:
        size = ", --quick" if old["quick"] else ""
        raise RecordError(f"{path} holds results of {old['chip']}{size}: give another file")
    return old


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a draft to write, which takes the place of ``path`` at the end.

    A kill in the middle of a write, or a full disk, loses nothing of what other runs measured.

    Raises:
        SystemExit: the draft could not be written, with one line; ``path`` is as it was. Nobody is to
            catch it: a program that went on would measure what it cannot keep.
    """
    draft = path.with_stem(f"{path.stem}.draft")
    try:
        yield draft
        draft.replace(path)
    except OSError as error:
        known = "the results of before are still there" if path.exists() else "there are no results"
        raise SystemExit(f"{path} cannot be written ({error.strerror}); {known}") from None
    finally:
        draft.unlink(missing_ok=True)
