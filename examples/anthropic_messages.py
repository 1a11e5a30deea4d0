"""A conversation through ``/v1/messages``, by the anthropic package, which comes with SGLang.

These replies have no place for what LaProx did, so the server's totals tell: every turn was pruned, and
its instructions stayed dense. The last turn comes as a stream.
"""

import sys
from dataclasses import dataclass

import anthropic
import requests

from laprox_tools.needle import DIGITS, Task, Turn


@dataclass(frozen=True)
class Said:
    """One turn; ``hit`` counts only on a server with ``--enable-cache-report``."""

    answer: str
    prompt: int
    hit: int
    pruned: int
    freed: int


def totals(url: str) -> dict[str, int]:
    states = requests.get(f"{url}/server_info", timeout=60).json()["internal_states"]
    return states[0].get("laprox") or {"pruned": 0, "slots_freed": 0}


def talk(url: str, instructions: str, turns: list[Turn], tokens: int) -> list[Said]:
    client = anthropic.Anthropic(base_url=url, api_key="none")
    messages: list[anthropic.types.MessageParam] = []
    said = []
    for number, turn in enumerate(turns, 1):
        messages.append({"role": "user", "content": " ".join(turn.text)})
        before = totals(url)
        # Newer versions of the package have no name for the temperature.
        request = {"model": "default", "max_tokens": tokens, "extra_body": {"temperature": 0}}
        request |= {"system": instructions, "messages": messages}
        if number < len(turns):
            reply = client.messages.create(**request)
        else:
            with client.messages.stream(**request) as stream:
                reply = stream.get_final_message()
        text = reply.content[0].text
        messages.append({"role": "assistant", "content": text})
        after, usage = totals(url), reply.usage
        hit = usage.cache_read_input_tokens or 0
        pruned, freed = (after[name] - before[name] for name in ("pruned", "slots_freed"))
        said.append(Said(text.strip(), usage.input_tokens + hit, hit, pruned, freed))
    return said


if __name__ == "__main__":
    task = Task(seed=3)
    instructions = " ".join(task.filler() for _ in range(10))
    for turn in talk(sys.argv[1], instructions, task.conversation([40, 12, 12]), DIGITS):
        print(f"{turn.answer!r}  prompt {turn.prompt}, hit {turn.hit}, freed {turn.freed} slots")
