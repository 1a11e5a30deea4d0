"""How results are written: whole, or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
