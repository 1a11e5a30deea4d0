"""Chats: what the template makes of instructions and tools stays dense, by every API that has messages."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from benchmarks.harness.client import facts
from benchmarks.harness.server import RETURN_KEPT
from laprox_sglang.options.server import WINDOW
from laprox_sglang.report.positions import kept_positions
from laprox_tools.needle import DIGITS, Task, Turn
from server import Server

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("ticket", "badge")
]
BUDGET = 0.2
Message = dict[str, Any]


# As Mistral's: tools and system message stand before the last user message.
BEFORE_THE_LAST = (
    "{{ '<s> ' }}{% for m in messages %}{% if m.role == 'user' %}{% if loop.last %}"
    "{% if tools %}{{ 'and the ' }}{% for t in tools %}{{ t.function.name + ' ; ' }}{% endfor %}{% endif %}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content + ' . ' }}{% endif %}{% endif %}"
    "{{ m.content + ' ' }}{% elif m.role == 'assistant' %}{{ m.content + ' . ' }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # With the chat template that comes with the model.
    with Server("--enable-laprox", "--laprox-budget", str(BUDGET), "--enable-cache-report") as server:
        yield server


@pytest.fixture(autouse=True)
def empty_cache(server: Server) -> None:
    server.flush()


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def complete(client: openai.OpenAI, messages: list[Message], laprox: Any = None, **more: Any) -> Any:
    extra = {"return_meta_info": True, "custom_params": {"laprox": laprox} if laprox else None}
    return client.chat.completions.create(
        model="default", messages=messages, max_tokens=DIGITS, temperature=0, extra_body=extra, **more
    )


def facts_of(completion: Any) -> dict[str, Any]:
    return facts(completion.choices[0].to_dict())


def user(turn: Turn) -> Message:
    return {"role": "user", "content": " ".join(turn.text)}


def test_developer_messages_and_tools_stay_dense_in_every_turn(
    client: openai.OpenAI, turns: list[Turn], instructions: str
) -> None:
    """As ``test_openai_tools`` for system messages; only one turn has a call here."""
    messages: list[Message] = [{"role": "developer", "content": instructions}]
    # <s> and the ticket ; badge ; … .
    dense = 1 + 2 + 2 * len(TOOLS) + len(instructions.split()) + 1
    before = 0
    for number, turn in enumerate(turns):
        if number == 2:
            # What this turn tells comes from a tool.
            call = {"id": "1", "type": "function", "function": {"name": "ticket", "arguments": "{}"}}
            middle = turn.text.index("question")
            messages += [
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "1", "content": " ".join(turn.text[:middle])},
                {"role": "user", "content": " ".join(turn.text[middle:])},
            ]
        else:
            messages.append(user(turn))
        completion = complete(client, messages, tools=TOOLS)
        said, text = facts_of(completion), completion.choices[0].message.content
        assert said["pruned"] and said["dense_tokens"] == dense, said
        assert said["slots_after"] == math.ceil(round(BUDGET * (said["prompt_tokens"] - dense), 6))
        assert said["cached_tokens"] == completion.usage.prompt_tokens_details.cached_tokens == before
        assert text.split() == turn.answer
        messages.append({"role": "assistant", "content": text})
        before = said["prompt_tokens"]


def test_a_request_says_what_stays_dense(
    client: openai.OpenAI, server: Server, turns: list[Turn], instructions: str, seed: int
) -> None:
    messages = [{"role": "system", "content": instructions}, user(turns[0])]

    def dense(laprox: Any) -> int:
        said = facts_of(complete(client, messages, laprox))
        assert said["pruned"] and said["slots_before"] == said["prompt_tokens"] - said["dense_tokens"]
        return int(said["dense_tokens"])

    whole = 1 + len(instructions.split()) + 1
    assert dense(None) == dense({"keep_prefix": "system"}) == dense({"budget": 0.1}) == whole
    assert dense({"keep_prefix": 0}) == 0
    assert dense({"keep_prefix": 60}) == 60
    assert dense({"keep_prefix": whole + 10}) == whole + 10
    # No template, no instructions.
    raw = server.generate(Task(seed).batch(1, 600)[0].prompt_ids(), 4, {"keep_prefix": "system"})
    assert facts(raw)["pruned"] and facts(raw)["dense_tokens"] == 0


def test_without_instructions_nothing_stays_dense(client: openai.OpenAI, turns: list[Turn]) -> None:
    completion = complete(client, [user(turns[0])])
    said = facts_of(completion)
    assert said["pruned"] and said["dense_tokens"] == 0
    assert said["prompt_tokens"] == said["slots_before"] == 1 + len(turns[0].text)
    assert completion.choices[0].message.content.split() == turns[0].answer


def test_instructions_alone_are_not_the_whole_prompt(client: openai.OpenAI, instructions: str) -> None:
    said = facts_of(complete(client, [{"role": "system", "content": instructions}]))
    # <s> … . of which the last token asks.
    assert said["prompt_tokens"] == len(instructions.split()) + 2
    assert not said["pruned"] and said["reason"] == "short"
    assert said["slots_before"] == 1


def freed(dense: int, prompt_tokens: int) -> int:
    """Slots that a prompt frees whose first tokens stay dense."""
    length = prompt_tokens - dense
    return length - math.ceil(round(BUDGET * length, 6))


def test_openai_responses(
    server: Server, client: openai.OpenAI, turns: list[Turn], instructions: str
) -> None:
    # This API, unlike the others, takes no model but one that there is.
    [model] = client.models.list()
    dense = 1 + len(instructions.split()) + 1
    before = server.laprox()
    response = client.responses.create(
        model=model.id,
        instructions=instructions,
        input=" ".join(turns[0].text),
        # SGLang takes two of them for itself.
        max_output_tokens=DIGITS + 2,
        temperature=0,
    )
    assert response.output_text.split() == turns[0].answer
    after = server.laprox()
    assert after["pruned"] == before["pruned"] + 1
    assert after["slots_freed"] - before["slots_freed"] == freed(dense, dense + len(turns[0].text))


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "completions"])
def test_facts_come_with_every_reply(client: openai.OpenAI, turns: list[Turn], chat: bool) -> None:
    """Unasked, for not every client can ask; in a stream with the usage."""
    prompt: dict[str, Any] = {"messages": [user(turns[0])]}
    if not chat:
        prompt = {"prompt": " ".join(["<s>", *turns[0].text])}
    create = client.chat.completions.create if chat else client.completions.create
    given = {"model": "default", "max_tokens": DIGITS, "temperature": 0, **prompt}
    first = create(**given).metadata["laprox"]
    [said] = first
    assert said["pruned"] and said["slots_after"] == math.ceil(round(BUDGET * said["slots_before"], 6))
    again = said | {"cached_tokens": said["prompt_tokens"] - WINDOW}
    assert create(**given, n=2).metadata["laprox"] == [again, again]
    *chunks, last = create(**given, stream=True, stream_options={"include_usage": True})
    assert last.usage.prompt_tokens == said["prompt_tokens"] and not last.choices
    assert last.metadata == {"laprox": [again]}
    assert len(chunks) > 1 and not any(hasattr(chunk, "metadata") for chunk in chunks)
    if chat:
        asked = create(**given, extra_body={"return_meta_info": True})
        assert facts_of(asked) == again
    # Whole prompts have their reason.
    [whole] = create(**given, extra_body={"custom_params": {"laprox": {"enabled": False}}}).metadata["laprox"]
    assert (whole["pruned"], whole["reason"]) == (False, "disabled")


def test_instructions_behind_other_messages_are_kept(
    turns: list[Turn], instructions: str, tmp_path: Path
) -> None:
    """Over HTTP, with a server whose template puts them there; it says so once."""
    template = tmp_path / "template.jinja"
    template.write_text(BEFORE_THE_LAST)
    flags = (
        "--enable-laprox",
        "--laprox-budget",
        str(BUDGET),
        "--chat-template",
        str(template),
        *RETURN_KEPT,
    )
    with Server(*flags) as server:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
        messages: list[Message] = [{"role": "system", "content": instructions}]
        before = 1
        block = 2 + 2 * len(TOOLS) + len(instructions.split()) + 1
        for number, turn in enumerate(turns[:3]):
            messages.append(user(turn))
            completion = complete(client, messages, {"return_kept": True}, tools=TOOLS)
            said = facts_of(completion)
            assert said["pruned"] and said["prompt_tokens"] == before + block + len(turn.text), said
            if number == 0:
                assert (said["instructions"], said["protected_tokens"]) == ("dense", 0)
                assert said["dense_tokens"] == 1 + block
            else:
                assert (said["instructions"], said["dense_tokens"]) == ("protected", 1)
                assert block <= said["protected_tokens"] <= block + 3
                behind = {*range(before, before + block)}
                for layer in kept_positions(said):
                    assert all(behind <= {*head} for head in layer)
                assert said["slots_after"] == math.ceil(round(BUDGET * said["slots_before"], 6))
            answer = str(completion.choices[0].message.content)
            messages.append({"role": "assistant", "content": answer})
            before += len(turn.text) + len(answer.split()) + 1
        assert server.launch.log.read_text().count("puts instructions behind other messages") == 1
        with pytest.raises(openai.BadRequestError, match="unknown field `instructions`"):
            complete(client, messages[:2], {"instructions": {"spans": [[0, 500]]}})
