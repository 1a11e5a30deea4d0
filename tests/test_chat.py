"""Chat requests: what the template knows of instructions reaches the scheduler, and no body stays behind."""

import asyncio
import copy
import pickle
import random
import tracemalloc
from types import SimpleNamespace

import pytest
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest

import chats
from laprox_patches.tokenizer import chat
from laprox_patches.tokenizer.request import add_refused, check_options, with_plain_text
from laprox_sglang.options.request import Instructions, Options, Told
from laprox_sglang.options.server import Config
from laprox_sglang.options.values import REQUEST_OPTIONS, SYSTEM, ConfigError
from laprox_sglang.prefix import ChatPrompt, ChatText, Found
from laprox_sglang.renderings import REMEMBERED, REMEMBERED_TOKENS

SYSTEM_PROMPT, USER, END = 1000, 2000, 9
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


class Serving(chats.Serving):
    """A template of one token a word, which puts tools first."""

    def __init__(self, strict: bool = False, **options) -> None:
        super().__init__(None, **options)
        self.strict = strict

    def process(self, request, is_multimodal, **kwargs):
        if self.strict and len(request.messages) < 3:
            raise ValueError("a conversation has three messages")
        self.rendered += 1
        ids = [7] * len(request.tools or [])
        for each in request.messages:
            words = [int.from_bytes(word.encode()[:2]) for word in each.content.split()]
            ids += [{"system": SYSTEM_PROMPT}.get(each.role, USER), *words, END]
        return SimpleNamespace(prompt="", prompt_ids=ids)


def prompt(serving: Serving, *messages, **options):
    request = ChatCompletionRequest(model="m", messages=list(messages), **options)
    return chat.process_messages(Serving.process, serving, request, False).prompt_ids


def test_instructions_of_a_conversation():
    serving = Serving()
    system = message("system", "be brief")
    first = prompt(serving, system, message("user", "who are you"))
    # Its mark, its words, its end, and the mark of any question.
    assert isinstance(first, ChatPrompt) and first.found == Found(5)
    longer = [message("user", "who"), message("assistant", "me"), message("user", "and now")]
    assert prompt(serving, system, *longer).found == Found(5)
    # Each prompt once, their instructions once, and once what a question looks like.
    assert serving.rendered == 4
    assert prompt(serving, message("system", "be long"), message("user", "who")).found == Found(5)
    assert serving.rendered == 6
    assert prompt(serving, system, message("user", "who"), tools=[TOOL]).found == Found(6)


def test_a_later_system_message_is_found_where_it_is():
    serving = Serving()
    system, later = message("system", "be brief"), message("system", "from now on be long again")
    turn = [message("user", "who"), message("assistant", "me"), later, message("user", "and now")]
    found = prompt(serving, system, *turn).found
    # Behind two turns of three tokens each.
    assert found.dense == 5 and found.spans == ((4 + 3 + 3, 4 + 3 + 3 + 8),) and found.how == "protected"


def test_a_conversation_without_instructions_is_left_alone():
    serving = Serving()
    ids = prompt(serving, message("user", "who"))
    assert type(ids) is list and serving.rendered == 1
    assert prompt(serving, message("user", "who"), tools=[TOOL]).found == Found(2)


@pytest.mark.parametrize(
    ("config", "preferred", "custom_params"),
    [
        ({"keep_prefix": 0}, None, None),
        ({"keep_prefix": 700}, None, None),
        ({"keep_prefix": 0}, None, {"laprox": {"budget": 0.1}}),
        ({}, None, {"laprox": {"enabled": False}}),
        ({}, None, {"laprox": {"keep_prefix": 0}}),
        ({}, None, {"laprox": {"keep_prefix": 300}}),
        # Refused in a moment.
        ({}, None, {"laprox": {"budget": "much"}}),
        ({}, None, ["laprox"]),
        ({"keep_prefix": 0}, {"custom_params": {"laprox": {"enabled": False}}}, None),
    ],
)
def test_the_template_is_rendered_once_where_nothing_is_to_stay_dense(config, preferred, custom_params):
    serving = Serving(config=Config(**config))
    serving.tokenizer_manager.preferred_sampling_params = preferred
    request = ChatCompletionRequest(
        model="m", messages=[message("system", "be brief"), message("user", "who")], tools=[TOOL]
    )
    request.custom_params = custom_params
    result = chat.process_messages(Serving.process, serving, request, False)
    assert type(result.prompt_ids) is list and serving.rendered == 1


@pytest.mark.parametrize(
    ("config", "preferred", "custom_params"),
    [
        ({}, None, None),
        ({}, None, {"other": 1}),
        ({"keep_prefix": 0}, None, {"laprox": {"keep_prefix": SYSTEM}}),
        ({"keep_prefix": 0}, {"custom_params": {"laprox": {"keep_prefix": SYSTEM}}}, None),
        # Chats do not have them, responses do: the server's own word may hold.
        ({}, {"custom_params": {"laprox": {"keep_prefix": 0}}}, None),
    ],
)
def test_and_twice_where_something_may(config, preferred, custom_params):
    serving = Serving(config=Config(**config))
    serving.tokenizer_manager.preferred_sampling_params = preferred
    messages = [message("system", "be brief"), message("user", "who")]
    assert prompt(serving, *messages, custom_params=custom_params).found == Found(5)


def test_a_server_without_laprox_is_left_alone():
    serving = Serving()
    del serving.tokenizer_manager.server_args._laprox
    assert type(prompt(serving, message("system", "be brief"), message("user", "who"))) is list


def test_a_template_that_does_not_render_instructions_alone_is_served(caplog):
    serving = Serving(strict=True)
    turns = [message("user", "a"), message("assistant", "b"), message("user", "c")]
    for text in ("be brief", "be long", "be kind"):
        ids = prompt(serving, message("system", text), *turns)
        assert ids and ids.found == Found(0, rendered=False) and ids.found.how == "not_rendered"
    # Said once for the template, not for every prompt nor for every set of instructions.
    (record,) = caplog.records
    assert "three messages" in record.getMessage()


def test_what_a_template_does_is_said_once_for_all_apis(caplog):
    serving = chats.Serving(chats.tokenizer("mistral"))
    other = chats.Serving(serving.tokenizer)
    other.tokenizer_manager = serving.tokenizer_manager
    for turns in (1, 2, 3, 4):
        for calls in (False, True):
            for each in (serving, other):
                messages = chats.chat(turns, calls=calls)
                messages[0] = messages[0] | {"content": f"{turns} {calls} {chats.SYSTEM}"}
                request = ChatCompletionRequest(model="m", messages=messages, tools=chats.TOOLS)
                chat.process_messages(chats.Serving.process, each, request, False)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and len({*said}) == 2
    assert any("behind other messages" in line for line in said)
    assert any("are not found" in line for line in said)


def test_bodies_of_any_size_leave_nothing():
    """10,000 chats of up to 4 MB, each with other instructions; one in twenty is refused, as too long."""
    draw = random.Random(0)
    text, tokens, context = "ab " * 1_400_000, [2] * 1_000_000, 131_072
    serving = Serving(context=context)

    def process(self, request, is_multimodal, **kwargs):
        """A token for four characters, as fast as can be."""
        *_, system, question = ["", *(each.content for each in request.messages)]
        if len(system) > 4 * context:
            return SimpleNamespace(prompt="", prompt_ids=tokens)
        ids = tokens[: len(system) // 4]
        ids += [int(system.partition(" ")[0] or 0), USER, *question.encode()]
        return SimpleNamespace(prompt="", prompt_ids=ids)

    def ask(number: int) -> None:
        size = 4_000_000 if number % 20 == 0 else int(4 ** draw.uniform(2, 8))
        messages = [message("system", f"{number} {text[:size]}"), message("user", "who")]
        asked = ChatCompletionRequest(model="m", messages=messages)
        served = chat.process_messages(process, serving, asked, False).prompt_ids
        assert isinstance(served, ChatPrompt) == (number % 20 > 0)

    ask(1)
    tracemalloc.start()
    for number in range(10_000):
        ask(number)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    memory = serving.tokenizer_manager._laprox_template.instructions.memory
    assert 0 < memory.tokens <= REMEMBERED_TOKENS and len(memory) <= REMEMBERED
    assert grown < 64e6, f"{grown / 1e6:.0f} MB"


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
def test_what_the_template_knows_becomes_options_of_the_request(server, asked, keep):
    config = Config(keep_prefix=server, request_options=("keep_prefix", "budget"))
    given = {"temperature": 0, "custom_params": {"other": 1}}
    if asked is not None:
        given["custom_params"]["laprox"] = asked
    before = repr(given)
    obj = checked(config, given, Found(5, ((8, 12), (15, 16))))
    custom = obj.sampling_params["custom_params"]
    told = Told.of(custom)
    assert told.dense_tokens(config) == keep and told.budget == (asked or {}).get("budget")
    if keep == 5:
        # A fifth of the context is all that there is memory for.
        assert told.instructions == Instructions(((8, 12), (15, 16)), 200, "protected")
    else:
        assert told.instructions == Instructions()
    assert custom["other"] == 1 and obj.sampling_params["temperature"] == 0
    # Requests of one batch may share what their client sent.
    assert repr(given) == before


def checked(config: Config, params: dict, found: Found | None = None) -> SimpleNamespace:
    """A request that the tokenizer manager has checked."""
    prompt = ChatPrompt(range(20))
    prompt.found = found
    obj = SimpleNamespace(sampling_params=params, session_params=None, text=None, input_ids=prompt)
    check_options(None, manager(config), obj, list(prompt))
    return obj


def manager(config: Config) -> SimpleNamespace:
    return SimpleNamespace(
        server_args=SimpleNamespace(_laprox=config), preferred_sampling_params=None, context_len=1000
    )


PICTURE, PATCHES = int.from_bytes(b"pi"), 64


class Seeing(Serving):
    """Its prompts go on as text, of which a processor makes tokens, many of one picture.

    Attributes:
        own: the template is one of SGLang's, which gives no ids.
    """

    def __init__(self, own: bool = False) -> None:
        super().__init__()
        self.own, self.tokenizer_manager.tokenizer = own, self

    def process(self, request, is_multimodal, **kwargs):
        ids = super().process(request, is_multimodal, **kwargs).prompt_ids
        return SimpleNamespace(prompt=" ".join(map(str, ids)), prompt_ids=[] if self.own else ids)

    def encode(self, text):
        return [int(word) for word in text.split()]

    def expand(self, text):
        return [
            each for token in self.encode(text) for each in [token] * (PATCHES if token == PICTURE else 1)
        ]


@pytest.mark.parametrize("own", [False, True])
def test_instructions_of_a_text_are_looked_for_in_its_tokens(own):
    """A picture moves all that stands behind it."""
    serving = Seeing(own)
    first, later = message("system", "be brief"), message("system", "from now on be long again")
    turns = [message("user", "picture who"), message("assistant", "me"), later, message("user", "and now")]
    request = ChatCompletionRequest(model="m", messages=[first, *turns])
    result = chat.process_messages(Seeing.process, serving, request, True)
    rendered, ids = serving.rendered, serving.expand(result.prompt)
    assert bool(result.prompt_ids) != own
    obj = SimpleNamespace(sampling_params={}, session_params=None, text=result.prompt, input_ids=None)
    check_options(None, manager(Config()), obj, ids)
    told = Told.of(obj.sampling_params["custom_params"])
    # Three tokens and a picture's of one turn, three of the other.
    behind = 4 + 3 + PATCHES + 3
    assert told.keep_prefix == 5 and told.instructions.spans == ((behind, behind + 8),)
    assert serving.rendered == rendered
    # An unexpanded prompt has them elsewhere, and goes on as ids where nobody has to see.
    assert own or result.prompt_ids.found.spans == ((4 + 4 + 3, 4 + 4 + 3 + 8),)


def test_a_text_that_knows_more_is_text_wherever_it_is_sent():
    text = ChatText("who")
    text.look = lambda tokens: Found(len(tokens))
    for sent in (pickle.loads(pickle.dumps(text)), copy.deepcopy(text)):
        assert type(sent) is str and sent == text
    sent = with_plain_text(lambda *given: given, "manager", "request", text, [1], None)
    assert sent == ("manager", "request", "who", [1], None) and type(sent[2]) is str


def test_a_client_may_not_say_where_its_instructions_are():
    everything = Config(request_options=REQUEST_OPTIONS)
    sent = {"custom_params": {"laprox": {"instructions": {"spans": [[0, 900]], "most": 10**6}}}}
    with pytest.raises(ConfigError, match="unknown field `instructions`"):
        checked(everything, sent)
    with pytest.raises(ConfigError, match="unknown field `instructions`"):
        Options.of(sent["custom_params"])


@pytest.mark.parametrize(
    ("name", "value"), [("_format_add_generation_prompt", False), ("_format_add_special_tokens", True)]
)
def test_what_is_only_tokenized_is_left_alone(name, value):
    """``/tokenize`` asks the template otherwise: what it made of that is not what chats are made of."""
    serving = Serving()
    request = ChatCompletionRequest(
        model="m", messages=[message("system", "be brief"), message("user", "who")]
    )
    setattr(request, name, value)
    result = chat.process_messages(Serving.process, serving, request, False)
    assert type(result.prompt_ids) is list and serving.rendered == 1
    assert prompt(serving, message("system", "be brief"), message("user", "who")).found == Found(5)


def test_a_stock_engine_behind_one_with_laprox_says_what_stock_says():
    """Hooks stay in the process."""

    async def states(self):
        return [{"memory": 1}]

    manager = SimpleNamespace(server_args=SimpleNamespace())
    assert asyncio.run(add_refused(states, manager)) == [{"memory": 1}]
