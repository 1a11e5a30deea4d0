"""A program in SGLang's frontend language: three questions about one text, at once and then in a row.

The text is computed once. Every branch of the fork, and every ``gen``, is a request of its own: it hits the
exact text, and gets a view for its own question.
"""

import sys
from typing import Any

import sglang

from laprox_tools.needle import DIGITS, Task


@sglang.function
def ask_all(s: Any, text: str, questions: list[str], tokens: int) -> None:
    s += text
    # A fork that comes before its text is there does not send it ahead.
    s.sync()
    for number, branch in enumerate(branches := s.fork(len(questions))):
        branch += questions[number] + sglang.gen("answer", max_tokens=tokens, temperature=0)
    for number, branch in enumerate(branches):
        s[f"branch {number}"], s[f"branch {number} meta"] = branch["answer"], branch.get_meta_info("answer")
    for number, question in enumerate(questions):
        s += question + sglang.gen(f"row {number}", max_tokens=tokens, temperature=0) + " ."


def ask(url: str, text: str, questions: list[str], tokens: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Answer and ``meta_info`` of every question, in its branch and in the row."""
    state = ask_all.run(text=text, questions=questions, tokens=tokens, backend=sglang.RuntimeEndpoint(url))
    numbers = range(len(questions))
    said = {f"branch {n}": (state[f"branch {n}"], state[f"branch {n} meta"]) for n in numbers}
    return said | {f"row {n}": (state[f"row {n}"], state.get_meta_info(f"row {n}")) for n in numbers}


if __name__ == "__main__":
    sample = Task(seed=3).batch(1, 900, questions=3)[0]
    questions = [" " + " ".join(question) for question in sample.questions]
    for name, (answer, meta) in ask(sys.argv[1], " ".join(sample.context), questions, DIGITS).items():
        facts = meta.get("laprox", [{}])[-1]
        print(f"{name}: {answer!r}  prompt {meta['prompt_tokens']}, hit {meta['cached_tokens']},", end=" ")
        print(f"read {facts['slots_after']} slots" if facts.get("pruned") else "read whole")
