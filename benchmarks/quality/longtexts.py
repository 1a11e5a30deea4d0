"""Tasks of others: from files in ``--data``, else from the Hugging Face hub by the ``datasets`` package."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.quality.cases import Case

# Tokens of a reference answer that are looked at; a longer one is a summary.
ANSWER_TOKENS = 96
MULTI_NEWS = (
    "You are given several news passages. Write a one-page summary of all news. \n\nNews:\n{context}\n\n"
    "Now, write a one-page summary of all the news.\n\nSummary:"
)
FORMS = "longbench/TASK, ruler/LENGTH/TASK or minilongbench/TASK"


class NoText(ValueError):
    """A task that is not there; the message is one line."""


def cases(name: str, data: Path | None, tokenizer: Any, longest: int) -> list[Case]:
    """Questions with their reference answers, of prompts of up to ``longest`` tokens.

    Args:
        name: ``longbench/TASK``, ``ruler/LENGTH/TASK`` or ``minilongbench/TASK``.
        data: folder of files that were fetched before.

    Raises:
        NoText: there is no such task, or it can neither be read nor fetched.
    """
    found = []
    for prompt, begun, answer in rows(name, data):
        message = [{"role": "user", "content": prompt}]
        opened = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True) + begun
        ids = tokenizer(opened, add_special_tokens=False)["input_ids"]
        whole = tokenizer(opened + answer, add_special_tokens=False)["input_ids"]
        # A token that reaches from the prompt into the answer belongs to the answer.
        shared = next((i for i, (a, b) in enumerate(zip(ids, whole, strict=False)) if a != b), len(ids))
        rest = whole[shared : shared + ANSWER_TOKENS]
        if shared <= longest and len(rest) > 1:
            found.append(Case(name, whole[:shared], rest))
    if not found:
        raise NoText(f"{name} has no prompt of up to {longest} tokens")
    return found


def rows(name: str, data: Path | None) -> Iterator[tuple[str, str, str]]:
    """Of every sample the user's message, how the model's answer begins, and what it should be."""
    kind, _, task = name.partition("/")
    reader = {"longbench": longbench, "ruler": ruler, "minilongbench": minilongbench}.get(kind)
    if reader is None or not task:
        raise NoText(f"no task {name!r}; there are {FORMS}")
    yield from reader(task, data)


def longbench(task: str, data: Path | None) -> Iterator[tuple[str, str, str]]:
    file = None if data is None else data / f"longbench_{task}.jsonl"
    if file is not None and file.is_file():
        if task != "multi_news":
            raise NoText(f"{file}: only multi_news is read from a file; leave --data out to fetch {task}")
        for line in file.read_text().splitlines():
            row = json.loads(line)
            yield MULTI_NEWS.format(context=row["context"]), "", row["answers"][0]
        return
    for row in fetch("Xnhyacinth/LongBench", task, f"longbench/{task}"):
        yield row["context"] + row["question"], row["answer_prefix"], row["answers"][0]


def ruler(task: str, data: Path | None) -> Iterator[tuple[str, str, str]]:
    length, _, kind = task.partition("/")
    file = None if data is None else data / f"ruler_{length}_{kind}.jsonl"
    if file is not None and file.is_file():
        for line in file.read_text().splitlines():
            row = json.loads(line)
            # The last sentence begins the answer.
            question, mark, begun = row["input"].rpartition("? ")
            yield question + mark.strip(), begun.strip(), " " + row["outputs"][0]
        return
    for row in fetch("simonjegou/ruler", length, f"ruler/{task}"):
        if row["task"] == kind:
            yield row["context"] + row["question"], row["answer_prefix"].strip(), " " + row["answer"][0]


def minilongbench(task: str, data: Path | None) -> Iterator[tuple[str, str, str]]:
    file = None if data is None else data / "minilongbench" / f"{task}.json"
    if file is None or not file.is_file():
        raise NoText(f"minilongbench/{task} is read from DIR/minilongbench/{task}.json: give --data DIR")
    for row in json.loads(file.read_text()).values():
        gold = row["gold"]
        yield row["origin_prompt"], "", gold[0] if isinstance(gold, list) else gold


def fetch(dataset: str, configuration: str, name: str) -> Any:
    # Heavy, and only needed here.
    from datasets import load_dataset

    try:
        return load_dataset(dataset, configuration, split="test")
    except Exception as error:
        # Whatever the hub, the network and the package may come up with.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NoText(f"{name} cannot be fetched ({reason}): go online, or give --data DIR") from error
