"""Chat requests: the template is at hand where a prompt is made of messages, so it is asked there.

``/v1/chat/completions``, ``/v1/messages`` and ``/v1/responses`` all come by here.
"""

import logging
from collections.abc import Callable, Sequence

import msgspec
from sglang.srt.entrypoints.openai.protocol import ChatCompletionMessageUserParam
from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.attached import attached, config_of
from laprox_patches.seam import Seam
from laprox_sglang.options.request import Options
from laprox_sglang.options.values import SYSTEM, ConfigError, shown
from laprox_sglang.ports import ChatHandler, ChatRequest, Message, RenderedChat, Tokenizer, TokenizerManager
from laprox_sglang.prefix import (
    INSTRUCTIONS,
    OTHER_QUESTION,
    Ask,
    Asks,
    ChatPrompt,
    ChatText,
    Found,
    InstructionFinder,
    leading,
)

logger = logging.getLogger(__name__)

# What is said of a template, once; {…} is of the prompt at hand.
SAID = {
    "not_rendered": (
        "the chat template does not render instructions alone ({fault}), so nobody knows where they are in a "
        "prompt: they may be pruned"
    ),
    "protected": (
        "the chat template puts instructions behind other messages ({inside} tokens of a prompt of "
        "{tokens}): they are kept in every layer and head, and count in the budget, but do not stay dense"
    ),
    "not_found": (
        "{missing} tokens of instructions are not found in a prompt of {tokens}: the chat template leaves "
        "them out of it, or renders them otherwise there; they may be pruned"
    ),
}


def process_messages(
    original: Callable[..., RenderedChat],
    self: ChatHandler,
    request: ChatRequest,
    is_multimodal: bool,
    **kwargs: object,
) -> RenderedChat:
    result = original(self, request, is_multimodal, **kwargs)
    manager = self.tokenizer_manager
    if request.input_ids or not wanted(request, manager):
        return result
    # Of ``/tokenize`` and the like: nothing is generated, and the template was asked otherwise.
    if request._format_add_generation_prompt is not None or request._format_add_special_tokens:
        return result
    messages = [message for message in request.messages if message.role in INSTRUCTIONS]
    if not (messages or request.tools):
        return result
    prompt = tokens_of(result, manager.tokenizer)
    # SGLang refuses it, and what is refused leaves nothing here.
    if len(prompt) >= manager.context_len and not manager.allow_auto_truncate:
        return result
    template = template_of(manager)

    def ask(*messages: Message, **without: object) -> Ask:
        question = ChatCompletionMessageUserParam(role="user", content=OTHER_QUESTION)
        other = request.model_copy(
            update={"messages": [*messages, question], "continue_final_message": False, **without}
        )

        def render() -> list[int]:
            try:
                return tokens_of(original(self, other, is_multimodal, **kwargs), manager.tokenizer)
            except Exception as error:
                template.fault = shown(f"{type(error).__name__}: {error}")
                return []

        return Ask(type(self).__name__.encode() + key(other), render)

    instructed = ask(*messages)
    first = leading([message.role for message in request.messages])
    asks = Asks(
        instructed,
        instructed if first == len(messages) else ask(*messages[:first]),
        ask(tools=None, tool_choice="none"),
    )

    def look(tokens: Sequence[int]) -> Found:
        found = template.instructions.find(tokens, asks)
        template.say(found, len(tokens))
        return found

    # Which of the two goes on is decided later: with a picture it is the text. Whatever this renders is
    # remembered, so that nothing is rendered in the event loop.
    found = look(prompt)
    if result.prompt_ids is prompt:
        result.prompt_ids = known = ChatPrompt(prompt)
        known.found = found
    if result.prompt:
        result.prompt = text = ChatText(result.prompt)
        text.look = look
    return result


def tokens_of(rendered: RenderedChat, tokenizer: Tokenizer) -> list[int]:
    """Templates of SGLang's own give no ids to models that take images."""
    ids = rendered.prompt_ids
    return ids if ids and isinstance(ids, list) else tokenizer.encode(rendered.prompt or str(ids))


def wanted(request: ChatRequest, manager: TokenizerManager) -> bool:
    """Whether it may be that the instructions of this request are to stay dense."""
    config = config_of(manager.server_args)
    if config is None:
        return False
    given = [request.custom_params]
    if given == [None]:
        # Not every API lets its requests have the server's preferred parameters.
        given.append((manager.preferred_sampling_params or {}).get("custom_params"))
    try:
        options = [Options.of(custom_params) for custom_params in given]
    except ConfigError:
        # Refused in a moment, and told why.
        return False
    return any(each.enabled and each.keep_prefix_or(config) == SYSTEM for each in options)


class Template:
    """What a tokenizer manager knows of its chat template.

    Attributes:
        instructions: as the template renders them.
        fault: why it did not render something.
    """

    def __init__(self, context: int) -> None:
        self.instructions = InstructionFinder(context)
        self.fault = ""
        self._said: set[str] = set()

    def say(self, found: Found, tokens: int) -> None:
        """Warns, once of a kind: a server has one template, and its clients any number of prompts."""
        if found.how not in SAID or found.how in self._said:
            return
        self._said.add(found.how)
        text = SAID[found.how].format(
            inside=found.inside, missing=found.missing, tokens=tokens, fault=self.fault
        )
        logger.warning("LaProx: %s. Said once; every reply says it of its own prompt", text)


def template_of(manager: TokenizerManager) -> Template:
    return attached(manager, "_laprox_template", lambda: Template(manager.context_len))


def key(request: ChatRequest) -> bytes:
    """All that the template sees but the conversation."""
    template = ("tools", "tool_choice", "reasoning_effort", "chat_template_kwargs", "messages")
    return msgspec.json.encode(request.model_dump(include=set(template)))


SEAMS = (
    Seam(
        "sglang.srt.entrypoints.openai.serving_chat.OpenAIServingChat._process_messages",
        process_messages,
        HookType.AROUND,
        ("self", "request", "is_multimodal", "output_constrained"),
        "MessageProcessingResult",
    ),
)
