"""What became of a model: its answers compared, or the line that says why there are none."""

import re
from typing import Any, TypedDict


class Answer(TypedDict, total=False):
    """
    Attributes:
        facts: what LaProx said of it.
    """

    ids: list[int]
    logprobs: list[float]
    facts: dict[str, Any]


Answers = dict[str, list[Answer]]
STOCK, OPTED_OUT, WHOLE, VIEW = "stock", "opted out", "whole", "view"
SERVED, REFUSED, STOCK_FAILS, FAILED, NOT_MADE = "served", "refused", "stock fails", "failed", "not made"
# Bound on the difference of log-probs between a server over views and Hugging Face's code over the same
# cells, beside that of stock over all of them.
MOST = 1e-3
# Of the kept cells, those that the reference keeps as well, at least; between near ties rounding decides.
ALIKE = 0.98


def judged(stock: Answers | str, laprox: Answers | str, reading: dict[str, float] | None) -> dict[str, Any]:
    """
    Args:
        stock, laprox: what each answered, or the line that says why it did not.
        reading: both beside Hugging Face's code (``trial.compared``); None where that is not read.
    """
    failing = stock if isinstance(stock, str) else None
    if isinstance(laprox, str):
        if laprox.startswith("laprox: "):
            return {"outcome": REFUSED, "why": laprox, "stock_fails": failing}
        return {"outcome": STOCK_FAILS if failing else FAILED, "why": failing or laprox}
    if isinstance(stock, str):
        return {"outcome": STOCK_FAILS, "why": stock}
    return {
        "outcome": SERVED,
        "prompts": len(stock[STOCK]),
        "same": {kind: same(stock[STOCK], laprox[kind]) for kind in (OPTED_OUT, WHOLE)},
        "pruned": sum(answer["facts"]["pruned"] for answer in laprox[VIEW]),
        "reading": reading,
    }


def same(expected: list[Answer], answers: list[Answer]) -> int:
    """How many have the ids and the log-probs of stock, bit by bit."""
    return sum(
        (ours["ids"], ours["logprobs"]) == (stocks["ids"], stocks["logprobs"])
        for ours, stocks in zip(answers, expected, strict=True)
    )


def is_right(verdict: dict[str, Any]) -> bool:
    """Whether it is as it should be; what is refused, or what stock does not run here, is."""
    if verdict["outcome"] != SERVED:
        return verdict["outcome"] in (REFUSED, STOCK_FAILS)
    counts = {verdict["pruned"], *verdict["same"].values()}
    return counts == {verdict["prompts"]} and is_near(verdict)


def is_near(verdict: dict[str, Any]) -> bool:
    """Whether views are the reference's, and read as Hugging Face's code reads the same cells, as far as
    stock is; or nobody knows."""
    reading = verdict["reading"]
    if reading is None:
        return True
    return reading[VIEW] <= MOST + 3 * reading[STOCK] and reading["equal"] >= ALIKE * reading["cells"]


def in_words(verdict: dict[str, Any]) -> str:
    if verdict["outcome"] != SERVED:
        return f"{verdict['outcome']}: {verdict['why']}"
    right = "right" if is_right(verdict) else "NOT RIGHT"
    counts = ", ".join(f"{kind} {count} of {verdict['prompts']}" for kind, count in verdict["same"].items())
    return f"served, {right}; as stock: {counts}; {beside(verdict['reading'])}"


def beside(reading: dict[str, float] | None) -> str:
    if reading is None:
        return "Hugging Face's code is not read"
    return (
        f"from Hugging Face's log-probs: stock {reading[STOCK]:.1e}, views {reading[VIEW]:.1e}; "
        f"{reading['equal'] / reading['cells']:.1%} of {reading['cells']:,.0f} cells the reference's"
    )


def reason(log: str) -> str:
    """The line of a log that says why a start or an answer failed."""
    for pattern in (r"^(?:SystemExit: )?(laprox: .*)", r"^([\w.]*(?:Error|Exception)\b.*)"):
        if said := re.search(pattern, log, re.MULTILINE):
            return said[1]
    lines = log.splitlines()
    return lines[-1] if lines else "it says nothing"


def loaded_class(log: str) -> str | None:
    """SGLang's class of a model, in the log of a server."""
    said = re.search(r"Load weight end.*? type=(\w+)", log)
    return said[1] if said else None
