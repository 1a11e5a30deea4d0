"""Options by a header: they join those of the body, and are checked as those are."""

import random
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from fastapi import Request

from laprox_patches.tokenizer.header import RESPONSES, read_header, read_header_of_body
from laprox_patches.tokenizer.request import refused
from laprox_sglang.options.header import HEADER, with_header
from laprox_sglang.options.request import Options
from laprox_sglang.options.server import Config
from laprox_sglang.options.values import LONGEST_MESSAGE, ConfigError
from options import draw_options


@pytest.mark.parametrize(
    ("body", "text", "merged"),
    [
        (None, '{"budget": 0.1}', {"budget": 0.1}),
        ({}, '{"budget": 0.1, "keep_prefix": "system"}', {"budget": 0.1, "keep_prefix": "system"}),
        ({"laprox": None}, '{"enabled": false}', {"enabled": False}),
        ({"laprox": {"budget": 0.1}}, '{"enabled": true}', {"budget": 0.1, "enabled": True}),
        ({"laprox": {"budget": 0.1}}, '{"budget": 0.1}', {"budget": 0.1}),
        ({"laprox": {"budget": 0.1}}, "{}", {"budget": 0.1}),
    ],
)
def test_options_of_header_and_body_are_put_together(body: Any, text: str, merged: Any) -> None:
    before = repr(body)
    given = with_header(body and body | {"other": 1}, text)
    assert given is not None and given["laprox"] == merged and given.get("other") == ((body or None) and 1)
    # It is read at two places of some requests, and a batch shares what its client sent.
    assert with_header(given, text) == given and repr(body) == before


@pytest.mark.parametrize(
    ("body", "text", "said"),
    [
        (None, "", f"{HEADER}: Input data was truncated"),
        (None, "budget=0.1", f"{HEADER}: JSON is malformed"),
        (None, "\x00\n\u202e", f"{HEADER}: JSON is malformed"),
        (None, "[" * 50_000, HEADER),
        (None, "0.1", f"{HEADER} must be an object of options, not float"),
        (None, "null", "not NoneType"),
        ({"laprox": {"budget": 0.1}}, '{"budget": 0.2}', "say different things of budget: give one of them"),
        ({"laprox": {"a\nb": 1}}, '{"a\\nb": 2}', "say different things of a\\nb: give one of them"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_bad_header_is_refused_in_one_line(body: Any, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        with_header(body, text)
    message = str(error.value)
    assert said in message and message.isprintable() and len(message) < LONGEST_MESSAGE + 100
    assert error.value.fault == "malformed"


@pytest.mark.parametrize("body", ["laprox", [1], {"laprox": "x"}, {"laprox": [1]}], ids=repr)
def test_a_bad_body_is_refused_for_what_it_is(body: Any) -> None:
    assert with_header(body, '{"budget": 0.1}') is body
    with pytest.raises(ConfigError, match="custom_params"):
        Options.of(body)


def test_any_header_is_refused_in_one_line_or_read(seed: int) -> None:
    draw = random.Random(seed)
    read = 0
    for _ in range(2000):
        body, other = draw_options(draw), draw_options(draw)
        given = other.get("laprox") if isinstance(other, dict) else other
        try:
            text = msgspec.json.encode(given).decode()
        except (ValueError, RecursionError):
            continue
        text = text[: draw.randint(0, len(text))] if draw.random() < 0.1 else text
        try:
            Options.of(with_header(body, text))
            read += 1
        except ConfigError as error:
            assert str(error).isprintable() and len(str(error)) < 2 * LONGEST_MESSAGE
    assert read > 100


def asked(text: str | None, path: str = "/generate") -> Request:
    headers = [] if text is None else [(HEADER.encode(), text.encode())]
    scope = {"type": "http", "path": path, "headers": headers, "server": ("h", 1), "scheme": "http"}
    return Request(scope | {"query_string": b"", "root_path": ""})


def manager(config: Config | None) -> Any:
    arguments = SimpleNamespace(_laprox=config) if config else SimpleNamespace()
    return SimpleNamespace(server_args=arguments)


@pytest.mark.parametrize("sampling", [None, {}, {"temperature": 0}, [{"temperature": 0}, {}]], ids=repr)
def test_it_becomes_options_of_every_kind_of_request(sampling: Any) -> None:
    budget = {"custom_params": {"laprox": {"budget": 0.1}}}
    generate = SimpleNamespace(sampling_params=sampling)
    read_header(manager(Config()), generate, asked('{"budget": 0.1}'))
    many = isinstance(sampling, list)
    expected = [params | budget for params in sampling] if many else (sampling or {}) | budget
    assert generate.sampling_params == expected
    body = SimpleNamespace(custom_params=None)
    read_header_of_body(SimpleNamespace(tokenizer_manager=manager(Config())), body, asked('{"budget": 0.1}'))
    assert body.custom_params == budget["custom_params"]


def test_without_a_header_or_laprox_nothing_changes() -> None:
    generate = SimpleNamespace(sampling_params={"temperature": 0})
    before = generate.sampling_params
    for config, request in ((Config(), None), (Config(), asked(None)), (None, asked('{"budget": 0.1}'))):
        read_header(manager(config), generate, request)
        assert generate.sampling_params is before


def test_a_refused_header_is_counted() -> None:
    front = manager(Config())
    with pytest.raises(ConfigError):
        read_header(front, SimpleNamespace(sampling_params={}), asked("budget"))
    with pytest.raises(ConfigError):
        read_header_of_body(
            SimpleNamespace(tokenizer_manager=front), SimpleNamespace(custom_params=None), asked("[]")
        )
    assert refused(front).to_dict() == {"malformed": 2}


@pytest.mark.parametrize(("server", "keep", "path", "served"), [
    (5, '"system"', RESPONSES, False), ("system", '"system"', RESPONSES, True), (5, "7", RESPONSES, True),
    (5, '"system"', "/generate", True),
])  # fmt: skip
def test_instructions_of_responses_are_looked_for_too_early(
    server: Any, keep: str, path: str, served: bool
) -> None:
    front = manager(Config(keep_prefix=server))
    request = asked(f'{{"keep_prefix": {keep}}}', path)
    if served:
        read_header(front, SimpleNamespace(sampling_params={}), request)
        return
    with pytest.raises(ConfigError, match="keep_prefix system is not served in /v1/responses"):
        read_header(front, SimpleNamespace(sampling_params={}), request)
    assert refused(front).to_dict() == {"unsupported": 1}
