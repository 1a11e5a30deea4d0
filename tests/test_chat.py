"""Chat prompts: what the template says of instructions reaches the request that is scheduled."""

from types import SimpleNamespace

import pytest
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest

from laprox_patches import chat
from laprox_patches.request import check_options
from laprox_sglang.options.request import Options
from laprox_sglang.options.server import Config
from laprox_sglang.options.values import SYSTEM
from laprox_sglang.prefix import ChatPrompt

SYSTEM_PROMPT, USER, END = 1000, 2000, 9
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


class Serving:
    """A template of one token a word, which puts tools first."""

    def __init__(self, strict: bool = False) -> None:
        self.strict, self.rendered = strict, []

    def process(self, request, is_multimodal, **kwargs):
        if self.strict and len(request.messages) < 3:
            raise ValueError("a conversation has three messages")
        self.rendered.append(request)
        ids = [7] * len(request.tools or [])
        for each in request.messages:
            ids += [{"system": SYSTEM_PROMPT}.get(each.role, USER), *map(hash, each.content.split()), END]
        return SimpleNamespace(prompt_ids=ids)


def prompt(serving: Serving, *messages, **options):
    request = ChatCompletionRequest(model="m", messages=list(messages), **options)
    return chat.process_messages(Serving.process, serving, request, False).prompt_ids


def test_instructions_of_a_conversation():
    serving = Serving()
    system = message("system", "be brief")
    first = prompt(serving, system, message("user", "who are you"))
    # Its mark, its words, its end, and the mark of any question.
    assert isinstance(first, ChatPrompt) and first.instructions == 5
    longer = [message("user", "who"), message("assistant", "me"), message("user", "and now")]
    assert prompt(serving, system, *longer).instructions == 5
    # Each prompt once, and their instructions once.
    assert len(serving.rendered) == 3
    assert prompt(serving, message("system", "be long"), message("user", "who")).instructions == 5
    assert len(serving.rendered) == 5
    assert prompt(serving, system, message("user", "who"), tools=[TOOL]).instructions == 6


def test_a_conversation_without_instructions_is_left_alone():
    serving = Serving()
    ids = prompt(serving, message("user", "who"))
    assert type(ids) is list and len(serving.rendered) == 1
    assert prompt(serving, message("user", "who"), tools=[TOOL]).instructions == 2


def test_a_template_that_does_not_render_instructions_alone_is_served(caplog):
    serving = Serving(strict=True)
    turns = [message("user", "a"), message("assistant", "b"), message("user", "c")]
    ids = prompt(serving, message("system", "be brief"), *turns)
    assert ids and ids.instructions == 0
    # Said once for these instructions, not for every prompt.
    assert prompt(serving, message("system", "be brief"), *turns).instructions == 0
    (record,) = caplog.records
    assert "three messages" in record.getMessage()


@pytest.mark.parametrize(
    ("server", "asked", "keep"),
    [
        (SYSTEM, None, 5),
        (SYSTEM, {}, 5),
        (SYSTEM, {"keep_prefix": SYSTEM, "budget": 0.1}, 5),
        (3, {"keep_prefix": SYSTEM}, 5),
        (SYSTEM, {"keep_prefix": 2}, 2),
        (SYSTEM, {"keep_prefix": 0}, 0),
        (3, None, 3),
    ],
)
def test_instructions_become_a_number_of_the_request(server, asked, keep):
    config = Config(keep_prefix=server)
    manager = SimpleNamespace(server_args=SimpleNamespace(_laprox=config), preferred_sampling_params=None)
    given = {"temperature": 0, "custom_params": {"other": 1}}
    if asked is not None:
        given["custom_params"]["laprox"] = asked
    before = repr(given)
    obj = SimpleNamespace(sampling_params=given, session_params=None, input_ids=ChatPrompt(range(20)))
    obj.input_ids.instructions = 5
    check_options(None, manager, obj, list(obj.input_ids))
    custom = obj.sampling_params["custom_params"]
    options = Options.of(custom)
    assert options.dense_tokens(config) == keep and options.budget == (asked or {}).get("budget")
    assert custom["other"] == 1 and obj.sampling_params["temperature"] == 0
    # Requests of one batch may share what their client sent.
    assert repr(given) == before
