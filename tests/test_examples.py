"""The examples, run as their users run them, and with questions whose answers are known."""

import math
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests

from examples import anthropic_messages, frontend, openai_tools, router
from fake_http import fake_http
from laprox_sglang.options.header import HEADER
from laprox_sglang.options.server import WINDOW
from laprox_tools.needle import DIGITS, Task, Turn
from server import ROOT, Server

pytestmark = pytest.mark.full

EXAMPLES = ROOT / "examples"
BUDGET = 0.2
FLAGS = ("--enable-laprox", "--laprox-budget", str(BUDGET), "--enable-cache-report")
# Two servers of as many threads as there are cores would wait for each other.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
# The same in every run, for exact answers are asked for.
SEED = 3


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(*FLAGS, **ONE_THREAD) as server:
        yield server


@pytest.fixture(autouse=True)
def empty_cache(request: pytest.FixtureRequest) -> None:
    if "server" in request.fixturenames:
        request.getfixturevalue("server").flush()


def slots(tokens: int) -> int:
    """What a view of so many tokens takes."""
    return math.ceil(round(BUDGET * tokens, 6))


def printed(name: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """Lines of ``python examples/NAME.py ARGUMENTS``, in this process: a new one would import SGLang anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    "name, arguments, lines, every",
    [
        (
            "openai_tools",
            ["4"],
            8,
            r"turn \d, (page: '.+'|question: '\d \d \d \d')  prompt \d+, hit \d+, "
            r"(read whole \(short\)|dense \d+, the other \d+ in \d+)",
        ),
        ("anthropic_messages", [], 3, r"'\d \d \d \d'  prompt \d+, hit \d+, freed [1-9]\d+ slots"),
        ("frontend", [], 6, r"(branch|row) \d: ' \d \d \d \d'  prompt \d+, hit \d+, read \d+ slots"),
    ],
    ids=["openai_tools", "anthropic_messages", "frontend"],
)
def test_as_commands(
    server: Server,
    capsys: pytest.CaptureFixture[str],
    name: str,
    arguments: list[str],
    lines: int,
    every: str,
) -> None:
    said = printed(name, capsys, server.url, *arguments)
    assert len(said) == lines
    for line in said:
        assert re.fullmatch(every, line), line


def test_openai_tools(server: Server, turns: list[Turn], instructions: str) -> None:
    steps = openai_tools.talk(server.url, instructions, turns, DIGITS)
    # <s> and the book ; … .
    dense = 1 + 2 + 2 + len(instructions.split()) + 1
    before = 0
    for step in steps[1:]:
        said = step.facts
        assert said["pruned"] and said["dense_tokens"] == dense, said
        assert said["slots_after"] == slots(said["prompt_tokens"] - dense)
    for step in steps:
        # The 7M model calls no tool: what it said in place of a call is not in the history.
        assert not step.called
        assert step.facts["cached_tokens"] == min(before, step.facts["prompt_tokens"] - WINDOW)
        before = step.facts["prompt_tokens"]
    assert [step.answer.split() for step in steps[1::2]] == [turn.answer for turn in turns]


def test_openai_tools_with_a_model_that_calls_the_tool(turns: list[Turn]) -> None:
    """Which the 7M model does not: a server that says what such a one would say, and is not SGLang."""
    heard: list[list[dict[str, Any]]] = []

    def reply(body: Any) -> tuple[int, Any]:
        heard.append(body["messages"])
        wants_page = "tool" in body["messages"][-1]["content"]
        function = {"name": "book", "arguments": "{}"}
        calls = [{"id": f"mine-{len(heard)}", "type": "function", "function": function}]
        message = {"role": "assistant", "content": None if wants_page else "7"}
        message["tool_calls"] = calls if wants_page else None
        return 200, {"id": "1", "choices": [{"index": 0, "message": message}]}

    with fake_http({"/v1/chat/completions": reply}) as url:
        steps = openai_tools.talk(url, "instructions", turns[:2], DIGITS)
    assert [(step.called, step.answer) for step in steps] == [(True, ""), (False, "7")] * 2
    called, told = heard[-1][7:9]
    assert called["tool_calls"][0]["id"] == told["tool_call_id"] == "mine-3"
    assert told["content"] == " ".join(turns[1].text[: turns[1].text.index("question")])
    assert str(steps[1]) == "turn 1, question: '7'"


def test_anthropic_messages(server: Server, turns: list[Turn], instructions: str) -> None:
    dense, before = 1 + len(instructions.split()) + 1, 0
    for turn, said in zip(
        turns, anthropic_messages.talk(server.url, instructions, turns, DIGITS), strict=True
    ):
        assert said.answer.split() == turn.answer
        assert (said.pruned, said.hit) == (1, before)
        length = said.prompt - dense
        assert said.freed == length - slots(length)
        before = said.prompt


def test_frontend(server: Server) -> None:
    sample = Task(SEED).batch(1, 900, questions=3)[0]
    text, questions = " ".join(sample.context), [" " + " ".join(question) for question in sample.questions]
    said = frontend.ask(server.url, text, questions, DIGITS)
    before = len(sample.context)
    for number, answer in enumerate(sample.answers):
        for name, there in (("branch", len(sample.context)), ("row", before)):
            words, meta = said[f"{name} {number}"]
            facts = meta["laprox"][-1]
            assert words.split() == answer
            assert facts["pruned"] and facts["dense_tokens"] == 0, facts
            # The fork has put the text into the tree, and every prompt enters it; the window is computed.
            assert meta["cached_tokens"] >= min(there, meta["prompt_tokens"] - WINDOW)
        before = meta["prompt_tokens"]


def asked_by_header(task: Task) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Paths, bodies, and where in them a client's options are."""
    text = " ".join(task.batch(1, 700)[0].prompt())
    openai = {"model": "default", "max_tokens": 4}
    chat: dict[str, Any] = openai | {"messages": [{"role": "user", "content": text}]}
    yield "/v1/chat/completions", chat, chat
    sampling: dict[str, Any] = {"max_new_tokens": 4}
    yield "/generate", {"text": text, "sampling_params": sampling}, sampling
    yield "/v1/completions", openai | {"prompt": text}, {}


def ask_by_header(url: str, body: dict[str, Any], place: dict[str, Any]) -> dict[str, Any]:
    """What is told of a request that opts out in its body, and by its header does not."""
    place["custom_params"] = {"laprox": {"enabled": False}}
    reply = requests.post(url, json=body, headers={HEADER: '{"budget": 0.1}'}, timeout=600).json()
    told: dict[str, Any] = (reply.get("meta_info") or reply["metadata"])["laprox"][-1]
    return told


def test_two_servers_behind_a_router_answer_as_one(server: Server, figures: list[str]) -> None:
    task = Task(SEED)
    conversations = [task.conversation([40, 12, 12, 12]) for _ in range(4)]
    alone = router.talk(server.url, conversations)
    server.flush()
    with Server(*FLAGS, **ONE_THREAD) as other:
        before = [each.laprox()["requests"] for each in (server, other)]
        with router.router([server.url, other.url]) as url:
            together = router.talk(url, conversations)
            served = [each.laprox()["requests"] - n for each, n in zip((server, other), before, strict=True)]
            by_header = [ask_by_header(f"{url}{path}", *asked) for path, *asked in asked_by_header(task)]
    # The router leaves the options out of these bodies.
    assert [facts["pruned"] for facts in by_header] == [True] * 3
    assert [facts["budget_effective"] for facts in by_header] == pytest.approx([0.1] * 3, abs=0.01)
    assert sum(served) == 16 and all(served), served
    # A view may lose an answer; which one is not what is asked here.
    right = [
        answer.split() == turn.answer
        for turns, one in zip(conversations, alone, strict=True)
        for turn, (answer, _) in zip(turns, one, strict=True)
    ]
    assert sum(right) >= len(right) - 1 == 15
    for one, two in zip(alone, together, strict=True):
        assert [answer for answer, _ in two] == [answer for answer, _ in one]
        # What the first turns of different conversations share depends on who else was there.
        assert [hit for _, hit in two[1:]] == [hit for _, hit in one[1:]]
        assert all(earlier < later for (_, earlier), (_, later) in pairwise(two))
    figures.append(
        f"4 conversations of 4 turns through a router: {served[0]} + {served[1]} requests on two servers, "
        "the answers and prefix hits of one"
    )


def run_engine(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLES / "engine.py"],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_engine() -> None:
    done = run_engine()
    assert done.returncode == 0, done.stderr[-4000:]
    sample = Task(7).batch(1, 800)[0]
    length = len(sample.prompt())
    kept = f"kept {math.ceil(0.1 * length)} of {length} slots"
    assert done.stdout.splitlines()[-1] == f"'{' '.join(['', *sample.answers[0]])}'  {kept}"


def test_an_engine_that_would_run_without_laprox_does_not_run() -> None:
    """SGLang passes over a plugin that SGLANG_PLUGINS does not name, and says nothing."""
    done = run_engine(SGLANG_PLUGINS="laprox_reference_cpu")
    assert done.returncode != 0 and "kept" not in done.stdout
    assert "RuntimeError: laprox: SGLang started without LaProx: " in done.stderr


def test_the_page_names_every_example() -> None:
    page = (EXAMPLES / "README.md").read_text()
    named = set(re.findall(r"`(\w+\.py)`", page))
    assert named == {path.name for path in Path(EXAMPLES).glob("*.py")}
