"""Tasks that others published: from files in ``--data``, else from the Hugging Face hub by ``datasets``."""

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
FORMS = "longbench/TASK or ruler/LENGTH/TASK"
# The user's message, how the model's answer begins, and what it should be.
Rows = Iterator[tuple[str, str, str]]


def cases(name: str, wanted: Wanted) -> list[Case]:
    """Questions with their reference answers.

    Args:
        name: ``longbench/TASK`` or ``ruler/LENGTH/TASK``.

    Raises:
        TaskError: there is no such task, or it can neither be read nor fetched.
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
    if kind not in READERS or not task:
        raise TaskError(f"no task {name!r}; there are {FORMS}")
    yield from READERS[kind](task, data)


def longbench(task: str, data: Path | None) -> Rows:
    if (file := there(data, f"longbench_{task}.jsonl")) is None:
        for row in fetch("Xnhyacinth/LongBench", task, f"longbench/{task}"):
            yield row["context"] + row["question"], row["answer_prefix"], row["answers"][0]
        return
    if task != "multi_news":
        raise TaskError(f"{file}: only multi_news is read from a file; leave --data out to fetch {task}")
    for row in map(json.loads, file.read_text().splitlines()):
        yield MULTI_NEWS.format(context=row["context"]), "", row["answers"][0]


def ruler(task: str, data: Path | None) -> Rows:
    length, _, kind = task.partition("/")
    if (file := there(data, f"ruler_{length}_{kind}.jsonl")) is None:
        for row in fetch("simonjegou/ruler", length, f"ruler/{task}"):
            if row["task"] == kind:
                yield row["context"] + row["question"], row["answer_prefix"].strip(), " " + row["answer"][0]
        return
    for row in map(json.loads, file.read_text().splitlines()):
        # The last sentence begins the answer.
        question, mark, begun = row["input"].rpartition("? ")
        yield question + mark.strip(), begun.strip(), " " + row["outputs"][0]


READERS = {"longbench": longbench, "ruler": ruler}


def there(data: Path | None, name: str) -> Path | None:
    return data / name if data is not None and (data / name).is_file() else None


def fetch(dataset: str, configuration: str, name: str) -> Any:
    # Heavy, and only needed here.
    from datasets import load_dataset

    try:
        return load_dataset(dataset, configuration, split="test")
    except Exception as error:
        # Whatever the hub, the network and the package may come up with.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TaskError(f"{name} cannot be fetched ({reason}): go online, or give --data DIR") from error
