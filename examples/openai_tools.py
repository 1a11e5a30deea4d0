"""An agent with a tool, through the openai package: ``python examples/openai_tools.py URL [TOKENS]``.

It reads page after page with the tool, and is asked about each in a reply of at most TOKENS.
Every turn sends the whole history. *hit* grows with it, for the history is exact cache; *dense* stays the
same, for it is the instructions and the tools; all behind that is read through a view.

A model that does not call the tool (the 7M model never does) gets the call put into its mouth: the program
writes call and result into the history, as agents do when they replay one.
"""

import sys
from dataclasses import dataclass
from typing import Any

import openai

from laprox_tools.needle import Task, Turn

TOOL = {
    "type": "function",
    "function": {
        "name": "book",
        "description": "Reads the next page of the book.",
        "parameters": {"type": "object", "properties": {}},
    },
}


@dataclass(frozen=True)
class Step:
    """What one request came to; ``facts`` is empty on a server without LaProx."""

    asked: str
    answer: str
    called: bool
    facts: dict[str, Any]

    def __str__(self) -> str:
        said = self.facts
        if not said:
            return f"{self.asked}: {self.answer!r}"
        line = f"{self.asked}: {self.answer!r}  prompt {said['prompt_tokens']}, hit {said['cached_tokens']}, "
        if not said["pruned"]:
            return line + f"read whole ({said['reason']})"
        return (
            line + f"dense {said['dense_tokens']}, the other {said['slots_before']} in {said['slots_after']}"
        )


def talk(url: str, instructions: str, turns: list[Turn], tokens: int) -> list[Step]:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}]
    steps = []

    def ask(what: str) -> Any:
        reply = client.chat.completions.create(
            model="default", messages=messages, tools=[TOOL], max_tokens=tokens, temperature=0
        )
        message = reply.choices[0].message
        # Not a field of OpenAI's: the package keeps it all the same.
        facts = (getattr(reply, "metadata", None) or {}).get("laprox", [{}])[-1]
        steps.append(Step(what, (message.content or "").strip(), bool(message.tool_calls), facts))
        return message

    for number, turn in enumerate(turns, 1):
        middle = turn.text.index("question")
        page, question = " ".join(turn.text[:middle]), " ".join(turn.text[middle:])
        messages.append({"role": "user", "content": "with the tool , read the next page ."})
        calls = [call.to_dict() for call in ask(f"turn {number}, page").tool_calls or []]
        if not calls:
            function = {"name": TOOL["function"]["name"], "arguments": "{}"}
            calls = [{"id": f"call-{number}", "type": "function", "function": function}]
        messages.append({"role": "assistant", "content": None, "tool_calls": calls})
        messages += [{"role": "tool", "tool_call_id": call["id"], "content": page} for call in calls]
        messages.append({"role": "user", "content": question})
        answer = ask(f"turn {number}, question")
        messages.append({"role": "assistant", "content": answer.content or ""})
    return steps


if __name__ == "__main__":
    task = Task(seed=3)
    instructions = " ".join(task.filler() for _ in range(10))
    # The 7M model never ends by itself; 4 tokens are its answer.
    tokens = int(sys.argv[2]) if len(sys.argv) > 2 else 64
    for step in talk(sys.argv[1], instructions, task.conversation([40, 12, 12, 12]), tokens):
        print(step)
