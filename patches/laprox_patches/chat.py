"""Chat requests: the template is at hand where a prompt is made of messages, so it is asked there.

``/v1/chat/completions``, ``/v1/messages`` and ``/v1/responses`` all come by here.
"""

import logging
from collections.abc import Callable
from typing import Any

import msgspec
from sglang.srt.entrypoints.openai.protocol import ChatCompletionMessageUserParam
from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.seam import Seam
from laprox_sglang.options.values import shown
from laprox_sglang.prefix import OTHER_QUESTION, ChatPrompt, Instructions, leading

logger = logging.getLogger(__name__)


def process_messages(
    original: Callable[..., Any], self: Any, request: Any, is_multimodal: bool, **kwargs: Any
) -> Any:
    result = original(self, request, is_multimodal, **kwargs)
    instructions = leading([message.role for message in request.messages])
    if not (instructions or request.tools) or not isinstance(result.prompt_ids, list) or request.input_ids:
        return result
    if not hasattr(self, "_laprox_instructions"):
        self._laprox_instructions = Instructions()
    other = request.model_copy(
        update={
            "messages": [
                *request.messages[:instructions],
                ChatCompletionMessageUserParam(role="user", content=OTHER_QUESTION),
            ],
            "continue_final_message": False,
        }
    )
    prompt = ChatPrompt(result.prompt_ids)

    def render() -> list[int]:
        try:
            return list(original(self, other, is_multimodal, **kwargs).prompt_ids)
        except Exception as error:
            # Once for these instructions: an empty rendering has nothing in common with any prompt.
            logger.warning(
                "LaProx: the chat template does not render instructions alone (%s); nothing of such prompts "
                "stays dense",
                shown(f"{type(error).__name__}: {error}"),
            )
            return []

    prompt.instructions = self._laprox_instructions.length(key(other), prompt, render)
    result.prompt_ids = prompt
    return result


def key(request: Any) -> bytes:
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
