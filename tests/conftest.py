"""One random seed per run, shown at its head and with every failure; ``LAPROX_TEST_SEED`` repeats a run."""

import os
import random
import signal

import pytest

from laprox_tools.needle import Task, Turn

SEED = int(os.environ.get("LAPROX_TEST_SEED") or random.SystemRandom().randrange(2**31))


def pytest_configure() -> None:
    """A run that is terminated ends its servers as one does that is interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_report_header() -> str:
    return f"LAPROX_TEST_SEED={SEED}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of every tree, loop and kept prefix ``make quick`` has each pair, not each three."""
    for item in items:
        given = getattr(getattr(item, "callspec", None), "params", {})
        if given.get("tree") == "python":
            item.add_marker(pytest.mark.full)
        elif {"tree", "overlap", "keep"} <= given.keys():
            # Of two values each, an even number of second ones.
            second = (given["tree"] == "off") + bool(given["overlap"]) + bool(given["keep"])
            if second % 2:
                item.add_marker(pytest.mark.full)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.failed and "seed" in getattr(item, "fixturenames", ()):
        report.sections.append(("seed", f"LAPROX_TEST_SEED={SEED}"))


FIGURES: list[str] = []


@pytest.fixture(scope="session")
def figures() -> list[str]:
    """Lines that a test measured; shown at the end of the run, whether it passed or not."""
    return FIGURES


def pytest_terminal_summary(terminalreporter) -> None:
    for line in FIGURES:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def seed() -> int:
    return SEED


# Not the run's: exact answers are asked for, and some conversations the model gets wrong even with all KV.
CONVERSATION = 3


@pytest.fixture
def turns() -> list[Turn]:
    """A conversation for the 7M model."""
    return Task(CONVERSATION).conversation([50, 12, 12, 12])


@pytest.fixture
def instructions() -> str:
    """A system message for it."""
    task = Task(CONVERSATION + 1)
    return " ".join(task.filler() for _ in range(10))
