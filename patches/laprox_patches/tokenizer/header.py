"""HTTP requests: options in a header become options of the body, before anything reads those."""

from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import Request
from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.attached import config_of
from laprox_patches.seam import Seam
from laprox_patches.tokenizer.request import refused
from laprox_sglang.options.header import HEADER, with_header
from laprox_sglang.options.request import Options
from laprox_sglang.options.values import SYSTEM, ConfigError
from laprox_sglang.ports import GenerateRequest, Json, OpenAIHandler, OpenAIRequest, TokenizerManager

# It renders its chat before there is a request that the header could be read into.
RESPONSES = "/v1/responses"


def read_header_of_body(
    self: OpenAIHandler, request: OpenAIRequest, raw_request: Request | None = None
) -> None:
    text = header(self.tokenizer_manager, raw_request)
    if text is not None:
        with counted(self.tokenizer_manager):
            request.custom_params = with_header(request.custom_params, text)


def read_header(self: TokenizerManager, obj: GenerateRequest, request: Request | None = None) -> None:
    """Of all APIs; those above have done it, and nothing changes."""
    text = header(self, request)
    if text is None:
        return
    given = obj.sampling_params
    with counted(self):
        if isinstance(given, list):
            obj.sampling_params = [merged(params, text) for params in given]
        else:
            obj.sampling_params = params = merged(given, text)
            check_place(params, self, request)


def check_place(params: Json, manager: TokenizerManager, request: Request | None) -> None:
    """Refuses what nobody would look for."""
    config = config_of(manager.server_args)
    # SGLang's gRPC server has requests of its own, without an address.
    late = isinstance(request, Request) and request.url.path.endswith(RESPONSES)
    if config is None or config.keep_prefix == SYSTEM or not late:
        return
    if Options.of(params["custom_params"]).keep_prefix == SYSTEM:
        raise ConfigError(
            f"{HEADER}: keep_prefix {SYSTEM} is not served in {RESPONSES}, but where the server was started "
            "with it: give a number, or ask /v1/chat/completions",
            "unsupported",
        )


def header(manager: TokenizerManager, request: Request | None) -> str | None:
    if request is None or config_of(manager.server_args) is None:
        return None
    return request.headers.get(HEADER)


def merged(params: Json | None, text: str) -> Json:
    params = params or {}
    return params | {"custom_params": with_header(params.get("custom_params"), text)}


@contextmanager
def counted(manager: TokenizerManager) -> Iterator[None]:
    """Counts a request that is refused within."""
    try:
        yield
    except ConfigError as error:
        refused(manager).add(error.fault)
        raise


SERVING = "sglang.srt.entrypoints.openai."
CONVERT = ("self", "request", "raw_request")
SEAMS = (
    Seam(
        SERVING + "serving_chat.OpenAIServingChat._convert_to_internal_request",
        read_header_of_body,
        HookType.BEFORE,
        CONVERT,
        "tuple[GenerateReqInput, ChatCompletionRequest]",
    ),
    Seam(
        SERVING + "serving_completions.OpenAIServingCompletion._convert_to_internal_request",
        read_header_of_body,
        HookType.BEFORE,
        CONVERT,
        "tuple[GenerateReqInput, CompletionRequest]",
    ),
    Seam(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager.generate_request",
        read_header,
        HookType.BEFORE,
        ("self", "obj", "request"),
    ),
)
