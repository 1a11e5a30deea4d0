"""Sixteen questions behind one system prompt, sent through the OpenAI-compatible API, and a conversation."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import openai

from laprox_tools.needle import CLASSES, Task, Turn, to_ids, words

SEED = 20261123
QUESTIONS = 16
# Lengths of whole prompts; a prompt ends up to 15 tokens below the length drawn.
SHORTEST, LONGEST = 1515, 3000
SYSTEM_SENTENCES = 25
FACT_SHARE = 0.3
# Sentences that each turn of the conversation adds.
TURNS = [120, 15, 15, 15]
NEW_TOKENS, AT_ONCE = 32, 7


@dataclass(frozen=True)
class Question:
    """A prompt that ends in a question, and the answer to it."""

    prompt: str
    answer: list[str]


@dataclass(frozen=True)
class Reply:
    """What a server said to a question; ``hit_tokens`` of the prompt came from its prefix cache."""

    text: str
    exact: bool
    prompt_tokens: int
    new_tokens: int
    hit_tokens: int


def questions() -> list[Question]:
    """The questions, always the same ones."""
    task, lengths = Task(SEED), random.Random(SEED)
    system = ["<s>", *" ".join(task.filler() for _ in range(SYSTEM_SENTENCES)).split()]
    found = []
    for i in range(QUESTIONS):
        # A sample brings an <s> of its own, which is dropped.
        length = lengths.randint(SHORTEST, LONGEST) - len(to_ids(system)) + 1
        sample = task.sample(length, 1, FACT_SHARE, few_words=i % 2 == 0)
        text = sample.prompt()[1:]
        # A first word that nobody else has: nothing but the system prompt is shared, so the hits
        # do not depend on who comes first.
        text[0] = words()[CLASSES["NOUN"][i]]
        found.append(Question(" ".join([*system, *text]), sample.answers[0]))
    return found


def send(url: str, asked: list[Question]) -> Iterator[Reply]:
    """Sends the questions to a server, several at once, and yields the replies as they come.

    The first one goes alone, so that all others can hit the system prompt.
    """
    yield ask(url, asked[0])
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for reply in as_completed([pool.submit(ask, url, question) for question in asked[1:]]):
            yield reply.result()


def talk(url: str) -> Iterator[Reply]:
    """Holds the conversation, whose later turns also ask about earlier ones."""
    prompt = "<s>"
    turns: list[Turn] = Task(SEED).conversation(TURNS, FACT_SHARE)
    for turn in turns:
        prompt = " ".join([prompt, *turn.text])
        reply = ask(url, Question(prompt, turn.answer), len(turn.answer))
        prompt += " " + reply.text.strip()
        yield reply


def ask(url: str, question: Question, tokens: int = NEW_TOKENS) -> Reply:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    completion = client.completions.create(
        model="default", prompt=question.prompt, temperature=0, max_tokens=tokens
    )
    usage, text = completion.usage, completion.choices[0].text
    assert usage is not None and usage.prompt_tokens_details is not None
    exact = text.split()[: len(question.answer)] == question.answer
    hits = usage.prompt_tokens_details.cached_tokens or 0
    return Reply(text, exact, usage.prompt_tokens, usage.completion_tokens, hits)
