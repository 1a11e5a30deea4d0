"""The task generator of the 7M model."""

import re

import pytest

from laprox_tools import needle
from laprox_tools.needle import CLASSES, DIGITS, MODEL_PATH, SENTENCE, Task, vocabulary, words

FACT = re.compile(r"the (\w+ of the \w+ \w+) is (\d \d \d \d) \.")
QUESTION = re.compile(r"question : what is the (\w+ of the \w+ \w+) \? answer :")


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL_PATH)


def test_the_same_seed_gives_the_same_samples(seed):
    first = Task(seed).batch(6, 512, 2, 0.3)
    assert first == Task(seed).batch(6, 512, 2, 0.3)
    assert first != Task(seed + 1).batch(6, 512, 2, 0.3)
    task = Task(seed)
    assert task.batch(6, 512, 2, 0.3) == first and task.batch(6, 512, 2, 0.3) != first


@pytest.mark.parametrize("length", [128, 512, 1024, 2048])
@pytest.mark.parametrize(("questions", "share"), [(1, 0.3), (1, 0.05), (3, 0.9)])
def test_samples(seed, length, questions, share):
    for sample in Task(seed).batch(8, length, questions, share):
        spent = len(sample.context) + sum(map(len, sample.questions + sample.answers))
        assert length - needle.SENTENCE < spent <= length
        assert sample.context[0] == "<s>" and sample.context.count("<s>") == 1
        facts: dict[str, set[str]] = {}
        for key, value in FACT.findall(" ".join(sample.context)):
            facts.setdefault(key, set()).add(value)
        # One answer to every question that could be asked.
        assert all(len(values) == 1 for values in facts.values())
        sentences = (len(sample.context) - 1) // needle.SENTENCE
        count = len(FACT.findall(" ".join(sample.context)))
        assert count == max(questions, int(sentences * share))
        assert len(sample.questions) == len(sample.answers) == questions
        for asked, answer in zip(sample.questions, sample.answers, strict=True):
            key = QUESTION.fullmatch(" ".join(asked)).group(1)
            assert facts[key] == {" ".join(answer)} and len(answer) == DIGITS


@pytest.mark.parametrize("few_words", [False, True])
def test_conversations(seed, few_words):
    turns = Task(seed).conversation([20, 5, 5, 5, 5], few_words=few_words)
    texts = [" ".join(turn.text) for turn in turns]
    assert [len(turn.text) for turn in turns] == [
        n * SENTENCE + needle.QUESTION - DIGITS for n in (20, 5, 5, 5, 5)
    ]
    for turn, (text, about) in enumerate(zip(texts, (0, 0, 1, 0, 2), strict=True)):
        key = QUESTION.search(text).group(1)
        told = [number for number, other in enumerate(texts) if f"the {key} is" in other]
        assert told[0] == about <= turn
        assert f"the {key} is {' '.join(turns[turn].answer)} ." in texts[about]


def test_prompt_is_context_then_question(seed):
    sample = Task(seed).batch(1, 512, 2, 0.3)[0]
    assert sample.prompt(1) == sample.context + sample.questions[1]
    assert sample.prompt_ids(1) == needle.to_ids(sample.prompt(1))
    assert [words()[i] for i in sample.answer_ids(1)] == sample.answers[1]


def test_ids_are_those_of_the_tokenizer(tokenizer, seed):
    assert tokenizer.get_vocab() == vocabulary() and len(words()) == len(vocabulary()) == 415
    sample = Task(seed).batch(1, 512, 1, 0.3)[0]
    assert tokenizer.encode(" ".join(sample.prompt()), add_special_tokens=False) == sample.prompt_ids()
    assert tokenizer.decode(sample.answer_ids()) == " ".join(sample.answers[0])


def test_classes_cover_the_vocabulary_behind_the_fixed_words():
    covered = [i for ids in CLASSES.values() for i in ids]
    assert covered == list(range(17, 415))
    by_class = {kind: [words()[i] for i in ids] for kind, ids in CLASSES.items()}
    assert by_class["DIGIT"] == list("0123456789")
    assert {"passcode", "address"} <= set(by_class["ATTRIBUTE"]) and "amber" in by_class["ADJECTIVE"]
    fixed = {word for filler in needle.FILLERS for word in filler.split() if word not in CLASSES}
    assert fixed | set("question what is of answer : ?".split()) <= set(words()[:17])
    assert all(len(filler.split()) == needle.SENTENCE for filler in needle.FILLERS)
    assert len("question : what is the x of the y z ? answer :".split()) + DIGITS == needle.QUESTION
