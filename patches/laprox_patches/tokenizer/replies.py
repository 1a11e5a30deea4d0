"""Replies of the OpenAI-compatible API: facts for clients that have no way to ask for ``meta_info``.

Only chat replies take ``return_meta_info``, and no stream does. ``metadata`` is the one free-form place
that SGLang's replies have; in a stream it comes with the usage, which a client asks for.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import msgspec
from sglang.srt.entrypoints.openai.protocol import ChatCompletionResponse, CompletionResponse
from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.attached import facts_of
from laprox_patches.seam import Seam
from laprox_sglang.ports import GenerateRequest

EVENT = "data: "


def add_facts(
    result: object, self: object, request: object, ret: list[dict[str, Any]], created: int
) -> object:
    """One entry for every choice; None for what was aborted without output."""
    facts = [(reply["meta_info"].get("laprox") or [None])[-1] for reply in ret]
    # Anything but these two types is an error response, which gets no facts.
    if any(facts) and isinstance(result, ChatCompletionResponse | CompletionResponse):
        result.metadata = {**(result.metadata or {}), "laprox": facts}
    return result


async def add_facts_to_stream(
    original: Callable[..., AsyncGenerator[str, None]],
    self: object,
    adapted_request: GenerateRequest,
    request: object,
    raw_request: object,
) -> AsyncGenerator[str, None]:
    async with aclosing(original(self, adapted_request, request, raw_request)) as chunks:
        async for chunk in chunks:
            # Facts exist once the request has ended, and go into the one chunk that has usage and no choice.
            # With several choices or prompts SGLang makes requests of its own, whose facts are not known
            # here.
            facts = facts_of(adapted_request)
            if facts is not None and '"choices":[]' in chunk and '"usage":{' in chunk:
                body = msgspec.json.decode(chunk.removeprefix(EVENT))
                body["metadata"] = {"laprox": [facts]}
                chunk = f"{EVENT}{msgspec.json.encode(body).decode()}\n\n"
            yield chunk


SERVING = "sglang.srt.entrypoints.openai"
BUILD = ("self", "request", "ret", "created")
STREAM = ("self", "adapted_request", "request", "raw_request")

SEAMS = (
    Seam(
        f"{SERVING}.serving_chat.OpenAIServingChat._build_chat_response",
        add_facts,
        HookType.AFTER,
        BUILD,
        "ChatCompletionResponse | ORJSONResponse",
    ),
    Seam(
        f"{SERVING}.serving_completions.OpenAIServingCompletion._build_completion_response",
        add_facts,
        HookType.AFTER,
        BUILD,
        "CompletionResponse",
    ),
    Seam(
        f"{SERVING}.serving_chat.OpenAIServingChat._generate_chat_stream",
        add_facts_to_stream,
        HookType.AROUND,
        STREAM,
        "AsyncGenerator[str, None]",
    ),
    Seam(
        f"{SERVING}.serving_completions.OpenAIServingCompletion._generate_completion_stream",
        add_facts_to_stream,
        HookType.AROUND,
        STREAM,
        "AsyncGenerator[str, None]",
    ),
)
