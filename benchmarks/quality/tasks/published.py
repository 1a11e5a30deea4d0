"""Tasks that others published, from files in ``--data``."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.quality.tasks.task import Case, TaskError, Wanted

# Longer prompts take too long on a CPU, and are more than SmolLM2 makes sense of.
LONGEST = 3072
# Tokens of a reference answer that are looked at; a longer one is a summary.
ANSWER_TOKENS = 48
# Documents that are left to those that judge, where settings are chosen.
JUDGING = 100
MULTI_NEWS = (
    "You are given several news passages. Write a one-page summary of all news. \n\nNews:\n{context}\n\n"
    "Now, write a one-page summary of all the news.\n\nSummary:"
)
FORMS = "longbench/multi_news or ruler/LENGTH/TASK"
# The user's message, how the model's answer begins, and what it should be.
Read = tuple[str, str, str]
Rows = Iterator[Read]


def cases(name: str, wanted: Wanted) -> list[Case]:
    """Questions with their reference answers.

    Args:
        name: ``longbench/multi_news`` or ``ruler/LENGTH/TASK``.

    Raises:
        TaskError: there is no such task, or its file is not there.
    """
    found = []
    for prompt, begun, answer in rows(name, wanted.data):
        message = [{"role": "user", "content": prompt}]
        opened = wanted.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        ids, whole = (
            wanted.tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (opened + begun, opened + begun + answer)
        )
        # A token that reaches from the prompt into the answer belongs to the answer.
        shared = next((i for i, (a, b) in enumerate(zip(ids, whole, strict=False)) if a != b), len(ids))
        rest = whole[shared : shared + ANSWER_TOKENS]
        if shared <= wanted.length and len(rest) > 1:
            found.append(Case(whole[:shared], rest, name))
    if not found:
        raise TaskError(f"{name} has no prompt of up to {wanted.length} tokens")
    skipped = JUDGING if wanted.tuning else 0
    return found[skipped : skipped + wanted.count]


def rows(name: str, data: Path | None) -> Rows:
    kind, _, task = name.partition("/")
    if kind not in READERS or not task or (kind == "longbench" and task != "multi_news"):
        raise TaskError(f"no task {name!r}; there are {FORMS}")
    file = Path(data or ".") / f"{name.replace('/', '_')}.jsonl"
    if not file.is_file():
        raise TaskError(f"{name} is read from {file.name}, which is not there: give its folder as --data DIR")
    return map(READERS[kind], map(json.loads, file.read_text().splitlines()))


def longbench(row: dict[str, Any]) -> Read:
    return MULTI_NEWS.format(context=row["context"]), "", row["answers"][0]


def ruler(row: dict[str, Any]) -> Read:
    # The last sentence begins the answer.
    question, mark, begun = row["input"].rpartition("? ")
    return question + mark.strip(), begun.strip(), " " + row["outputs"][0]


READERS = {"longbench": longbench, "ruler": ruler}
