"""Sixteen questions behind one system prompt, sent the two ways in which people call SGLang, and a talk."""

import random
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import openai
import sglang

from laprox_tools.needle import CLASSES, Task, Turn, to_ids, words

SEED = 20261123
QUESTIONS = 16
# Lengths of whole prompts; a prompt ends up to 15 tokens below the length drawn.
SHORTEST, LONGEST = 1515, 3000
SYSTEM_SENTENCES = 25
FACT_SHARE = 0.3
# Sentences that each turn of the conversation adds.
TURNS = [120, 15, 15, 15]
NEW_TOKENS = 32


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


class Workload:
    """The questions and the conversation; always the same ones.

    Attributes:
        through_openai, through_frontend: the halves of the questions, by the way they are sent.
        turns: the conversation; each turn but the first also asks about what was said before it.
    """

    def __init__(self) -> None:
        task, lengths = Task(SEED), random.Random(SEED)
        system = ["<s>", *" ".join(task.filler() for _ in range(SYSTEM_SENTENCES)).split()]
        questions = []
        for i in range(QUESTIONS):
            # A sample brings an <s> of its own, which is dropped.
            length = lengths.randint(SHORTEST, LONGEST) - len(to_ids(system)) + 1
            sample = task.sample(length, 1, FACT_SHARE, few_words=i % 2 == 0)
            text = sample.prompt()[1:]
            # A first word that nobody else has: nothing but the system prompt is shared, so the hits
            # do not depend on who comes first.
            text[0] = words()[CLASSES["NOUN"][i]]
            questions.append(Question(" ".join([*system, *text]), sample.answers[0]))
        self.through_openai = questions[: QUESTIONS // 2]
        self.through_frontend = questions[QUESTIONS // 2 :]
        self.turns: list[Turn] = Task(SEED).conversation(TURNS, FACT_SHARE)

    def send(self, url: str) -> Iterator[Reply]:
        """Sends all questions to a server, each half at once; yields the replies as they come.

        The first one goes alone, so that all others can hit the system prompt.
        """
        yield self._ask(url, self.through_openai[0])
        yield from self._send_openai(url, self.through_openai[1:])
        yield from self._send_frontend(url)

    def talk(self, url: str) -> Iterator[Reply]:
        """Holds the conversation; what the server said to a turn stands in the prompt of the next."""
        prompt = "<s>"
        for turn in self.turns:
            prompt = " ".join([prompt, *turn.text])
            reply = self._ask(url, Question(prompt, turn.answer), len(turn.answer))
            prompt += " " + reply.text.strip()
            yield reply

    def _ask(self, url: str, question: Question, tokens: int = NEW_TOKENS) -> Reply:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        completion = client.completions.create(
            model="default", prompt=question.prompt, temperature=0, max_tokens=tokens
        )
        usage = completion.usage
        assert usage is not None and usage.prompt_tokens_details is not None
        text = completion.choices[0].text
        return Reply(
            text,
            is_exact(text, question),
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.prompt_tokens_details.cached_tokens or 0,
        )

    def _send_openai(self, url: str, questions: list[Question]) -> Iterator[Reply]:
        with ThreadPoolExecutor(len(questions)) as pool:
            for reply in as_completed([pool.submit(self._ask, url, question) for question in questions]):
                yield reply.result()

    def _send_frontend(self, url: str) -> Iterator[Reply]:
        # SGLang prints a traceback for each of its threads; the error itself is raised below.
        warnings.filterwarnings("ignore", "Error in stream_executor")
        states = answer_question.run_batch(
            [{"prompt": question.prompt} for question in self.through_frontend],
            backend=sglang.RuntimeEndpoint(url),
            temperature=0,
            generator_style=True,
        )
        for state, question in zip(states, self.through_frontend, strict=True):
            if state.error() is not None:
                raise state.error()
            meta_info = state.get_meta_info("answer")
            yield Reply(
                state["answer"],
                is_exact(state["answer"], question),
                meta_info["prompt_tokens"],
                meta_info["completion_tokens"],
                meta_info["cached_tokens"],
            )


@sglang.function
def answer_question(s: Any, prompt: str) -> None:
    s += prompt
    s += sglang.gen("answer", max_tokens=NEW_TOKENS)


def is_exact(generated: str, question: Question) -> bool:
    return generated.split()[: len(question.answer)] == question.answer
