"""The tasks of the quality suite: every answer can be found by reading the document, and nothing else."""

import json
import re
from collections import Counter

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.quality.tasks import TASKS
from benchmarks.quality.tasks.chat import Chat, Question
from benchmarks.quality.tasks.needles import DIGITS
from benchmarks.quality.tasks.sentences import squad
from benchmarks.quality.tasks.task import TaskError, Wanted
from benchmarks.quality.tasks.words import PLACES

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>\n{{ m['content'] }}</{{ m['role'] }}>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    """Every byte is a token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=TEMPLATE)


def look_up(kind: str, question: str, text: str) -> str:
    """The answer, by reading the document: nothing of what made it is used."""
    if kind in ("word", *DIGITS, "multi-key"):
        what = question.removeprefix("What is ").removesuffix("?")
        [found] = re.findall(rf"{re.escape(what)} is \"?(\w+)", text, re.IGNORECASE)
        return found
    if kind == "job and city":
        name = re.search(r"What does (.*) work as", question)[1]
        [found] = re.findall(rf"{name} works as a( \w+ in \w+)\.", text)
        return found
    if kind == "multi-value":
        place = re.search(r"codes of (.*), in the order", question)[1]
        a, b, c = re.findall(rf"One of the entry codes of {place} is (\d+)\.", text)
        return f"{a}, {b} and {c}"
    if kind == "multi-query":
        places = sorted((place for place in PLACES if place in question), key=question.index)
        a, b, c = (re.search(rf"The entry code of {place} is (\d+)\.", text)[1] for place in places)
        return f"{a}, {b} and {c}"
    if kind == "variables":
        value = re.search(r"value (\d+)", question)[1]
        names = re.findall(rf"VAR (\w+) = {value}\.", text)
        while after := re.findall(rf"VAR (\w+) = VAR {names[-1]}\.", text):
            names += after
        places = [text.index(f"VAR {name} =") for name in names]
        assert places == sorted(places)
        return f" {names[1]}, {names[2]} and {names[3]}"
    if kind == "common words":
        [(most, often), (_, second)] = Counter(re.findall(r"(\w+ \w+);", text)).most_common(2)
        assert often > 2 * second
        return f" {most}"
    if kind == "first words":
        return " " + re.search(r"(\w+ \w+);", text)[1]
    if kind == "questions":
        [(paragraph, _, answer)] = {row for row in squad() if row[1] == question}
        assert text.count(paragraph) == 1 and paragraph.count(answer) == 1
        return answer
    if kind == "find":
        [found] = re.findall(rf'def (\w+)\(.*\):\n    """Return {question[23:-1]}\."""', text)
        return found
    if kind == "call":
        if named := re.search(r"Call `(\w+)`", question):
            [parameters] = re.findall(rf"def {named[1]}\((.*)\):", text)
            return ", ".join(f"{name}={name}" for name in parameters.split(", "))
        kind, *wanted = re.search(r"the (\w+) of (.*) from (.*) about the (\w+)\.", question).groups()
        columns = "customer", "city", "item"
        [record] = [row for row in rows(text) if kind in row and [row[name] for name in columns] == wanted]
        return record[kind]
    assert kind == "field"
    what, kind, key = re.search(r"What is the (\w+) number of (\w+) (\d+)\?", question).groups()
    [record] = [row for row in rows(text) if row.get(kind) == key]
    return record[what]


def rows(text: str) -> list[dict[str, str]]:
    pages = [json.loads(page) for page in re.findall(r"<tool>\n(.*?)</tool>", text, re.DOTALL)]
    assert len(pages) == 12 and min(map(len, pages)) > 1
    return [row for page in pages for row in page]


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.graded and not task.needle7m])
def test_every_answer_can_be_found_by_reading(tokenizer, name, seed):
    length = 12_000
    made = TASKS[name].cases(Wanted(tokenizer, length, 6))
    assert made == TASKS[name].cases(Wanted(tokenizer, length, 6))
    assert made != TASKS[name].cases(Wanted(tokenizer, length, 6, tuning=True))
    for case in made:
        text, decode = tokenizer.decode(case.prompt), tokenizer.decode
        assert 0.9 * length < len(case.prompt) <= length
        document, asked = text[: text.rindex(case.question)], text[text.rindex(case.question) :]
        assert decode(case.prompt[: case.context]) == document
        assert decode(case.answer) == look_up(case.kind, case.question, document)
        # As a later question of the same conversation.
        earlier = case.earlier
        assert earlier.prompt[: case.context] == case.prompt[: case.context]
        history = decode(earlier.prompt + earlier.answer + earlier.bridge)
        before = decode(earlier.prompt[case.context :])
        assert history == document + before + decode(earlier.answer) + decode(earlier.bridge)
        assert history.endswith(asked) and case.question not in before
        assert len(case.answer) >= 2 and len(earlier.answer) >= 2
        read, question = case.phases
        assert read <= case.context < question and decode(case.prompt[:question]).endswith(case.question)


def test_a_document_that_is_too_short_for_its_facts_is_refused(tokenizer):
    with pytest.raises(TaskError, match="200 tokens are too few"):
        TASKS["multiquery"].cases(Wanted(tokenizer, 200, 1))


def test_a_chat_template_that_refuses_is_one_line(tokenizer):
    class Strict:
        def apply_chat_template(self, messages, **options):
            raise ValueError("roles must alternate")

    with pytest.raises(TaskError, match="refuses a conversation: roles must alternate"):
        Chat(Strict()).opened([], Question("", "Who?", "", "me"))


def test_one_token_of_an_answer_is_looked_up(tokenizer):
    """The first comes out of the prefill, whatever is kept."""
    chat = Chat(tokenizer)
    assert [tokenizer.decode(part) for part in chat.split("is ", "7")] == ["is", " 7"]
    assert [tokenizer.decode(part) for part in chat.split("is ", "73")] == ["is ", "73"]
