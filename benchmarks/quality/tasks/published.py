"""Tasks that others published, from files in ``--data``."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.quality.tasks.chat import Chat, Question
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
FORMS = "longbench/multi_news, minilongbench/TASK or ruler/LENGTH/TASK"


def cases(name: str, wanted: Wanted) -> list[Case]:
    """Questions with their reference answers.

    Args:
        name: one of ``FORMS``.

    Raises:
        TaskError: there is no such task, or its file is not there.
    """
    chat, found = Chat(wanted.tokenizer), []
    for question in questions(name, wanted.data):
        prompt, answer = chat.split(chat.opened([], question), question.answer)
        if len(prompt) <= wanted.length and len(answer) > 1:
            found.append(Case(prompt, answer[:ANSWER_TOKENS], name))
    if not found:
        raise TaskError(f"{name} has no prompt of up to {wanted.length} tokens")
    skipped = JUDGING if wanted.tuning else 0
    return found[skipped : skipped + wanted.count]


def questions(name: str, data: Path | None) -> Iterator[Question]:
    kind, _, task = name.partition("/")
    if kind not in READERS or not task or (kind == "longbench" and task != "multi_news"):
        raise TaskError(f"no task {name!r}; there are {FORMS}")
    lines = kind != "minilongbench"
    file = Path(data or ".") / (f"{name.replace('/', '_')}.jsonl" if lines else f"{name}.json")
    if not file.is_file():
        raise TaskError(f"{name} is read from {file.name}, which is not there: give its folder as --data DIR")
    text = file.read_text()
    return map(READERS[kind], map(json.loads, text.splitlines()) if lines else json.loads(text).values())


def longbench(row: dict[str, Any]) -> Question:
    return Question("", MULTI_NEWS.format(context=row["context"]), "", row["answers"][0])


def minilongbench(row: dict[str, Any]) -> Question:
    gold = row["gold"]
    return Question("", row["origin_prompt"], "", (gold["answers"] if isinstance(gold, dict) else gold)[0])


def ruler(row: dict[str, Any]) -> Question:
    # The last sentence begins the answer.
    question, mark, begun = row["input"].rpartition("? ")
    return Question("", question + mark.strip(), begun.strip(), " " + row["outputs"][0])


READERS = {"longbench": longbench, "minilongbench": minilongbench, "ruler": ruler}
