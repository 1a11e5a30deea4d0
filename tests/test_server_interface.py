"""What a client sees: options, facts, totals, refusals of single requests. Overlap scheduling is off."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
import sglang as sgl
import torch
from safetensors.torch import load_file, save_file

from benchmarks.harness.client import facts, generation
from benchmarks.harness.server import RETURN_KEPT
from benchmarks.quality.methods.reader import Model
from laprox_sglang.options.header import HEADER
from laprox_sglang.options.server import WINDOW
from laprox_sglang.report.positions import kept_positions
from laprox_tools.needle import MODEL_PATH, Task
from prompts import IN_FP8, OPTED_OUT, ask_stock, check_identity, check_oracle, oracle_cases
from server import PYTHON_CORE, Server

pytestmark = pytest.mark.full

CHUNK = 640
KV_DTYPE = "fp8_e4m3"
FACTS = {
    "pruned",
    "reason",
    "prompt_tokens",
    "cached_tokens",
    "cached_from_host",
    "cached_from_storage",
    "dense_tokens",
    "protected_tokens",
    "instructions",
    "budget_effective",
    "kept_cells",
    "kept_share",
    "erased_share",
    "slots_before",
    "slots_first",
    "slots_after",
    "slots_least",
    "shrinks",
    "layer_share",
}


@pytest.fixture(scope="module")
def server(seed: int) -> Iterator[Server]:
    """Over fp8 KV: all that is told of a view is the same."""
    ask_stock(seed, KV_DTYPE)
    flags = ("--disable-overlap-schedule", "--chunked-prefill-size", str(CHUNK), "--enable-cache-report")
    flags = (*flags, "--kv-cache-dtype", KV_DTYPE)
    flags = ("--enable-laprox", "--laprox-budget", "1", *flags, *RETURN_KEPT)
    # Checks of the whole pool after every step take the longer the larger it is.
    with Server(*flags, tokens=12_000, **PYTHON_CORE) as server:
        yield server


@pytest.fixture(autouse=True)
def empty_cache(server: Server) -> None:
    """Prompts of different tests may share a beginning."""
    server.flush()


@pytest.fixture
def prompt(seed: int) -> list[int]:
    return Task(seed).batch(1, 1000)[0].prompt_ids()


def test_whole_prompts_are_answered_as_by_stock(server: Server, seed: int) -> None:
    check_identity(server, ask_stock(seed, KV_DTYPE))


def test_pruned_prompts_are_answered_as_by_the_oracle(server: Server, seed: int, figures: list[str]) -> None:
    cases = oracle_cases(random.Random(seed), CHUNK)[-4:]
    figures.append(
        "fp8 KV, " + check_oracle(server, Model(MODEL_PATH), cases, 4, torch.float8_e4m3fn, IN_FP8)
    )


def test_facts_of_a_pruned_request(server: Server, prompt: list[int]) -> None:
    said = facts(server.generate(prompt, 8, {"budget": 0.1}))
    slots = -(-len(prompt) // 10)
    assert set(said) == FACTS
    assert said["pruned"] and said["reason"] is None
    assert said["prompt_tokens"] == said["slots_before"] == len(prompt)
    assert said["cached_tokens"] == said["dense_tokens"] == said["protected_tokens"] == 0
    assert said["instructions"] is None
    assert said["slots_first"] == said["slots_after"] == said["slots_least"] == slots and not said["shrinks"]
    assert said["kept_cells"] == slots * 16
    assert said["kept_share"] == said["budget_effective"] == slots / len(prompt)
    assert len(said["layer_share"]) == 8 and sum(said["layer_share"]) == pytest.approx(1)


def test_what_is_kept_depends_on_the_prompt_alone(server: Server, prompt: list[int]) -> None:
    """Not on who has computed it, nor on who holds it."""
    options = {"budget": 0.1, "keep_prefix": 50, "return_kept": True}
    alone = facts(server.generate(prompt, 8, options))
    again = facts(server.generate(prompt, 8, options))
    assert (alone["cached_tokens"], again["cached_tokens"]) == (0, len(prompt) - WINDOW)
    assert again | {"cached_tokens": 0} == alone
    for event in server.stream(prompt, 100, OPTED_OUT):
        if event["meta_info"]["completion_tokens"] == 2:
            beside = facts(server.generate(prompt, 8, options))
            assert server.laprox()["running"], "the other one has ended already"
    assert beside == again


def test_kept_positions(server: Server, prompt: list[int]) -> None:
    said = facts(server.generate(prompt, 8, {"budget": 0.1, "return_kept": True}))
    kept = kept_positions(said)
    assert [len(heads) for heads in kept] == [2] * 8
    protected = {0, 1, 2, 3, *range(len(prompt) - WINDOW, len(prompt))}
    for positions in (positions for heads in kept for positions in heads):
        assert positions == sorted(set(positions)) and positions[-1] == len(prompt) - 1
        assert protected <= set(positions)
    tokens = set().union(*(positions for heads in kept for positions in heads))
    assert said["erased_share"] == 1 - len(tokens) / len(prompt)
    counts = [len(positions) for heads in kept for positions in heads]
    assert sum(counts) == said["kept_cells"]
    assert len(set(counts)) > 1, "heads and layers compete: they do not all keep the same number"


@pytest.mark.parametrize(
    "options, reason", [(OPTED_OUT, "disabled"), ({"budget": 1.0}, "within_budget"), (None, "within_budget")]
)
def test_reasons_for_leaving_a_prompt_whole(
    server: Server, prompt: list[int], options: Any, reason: str
) -> None:
    said = facts(server.generate(prompt, 8, options))
    assert not said["pruned"] and said["reason"] == reason
    assert said["dense_tokens"] == said["slots_after"] == said["slots_before"] == len(prompt)


def test_a_kept_prefix_stays_dense(server: Server, prompt: list[int]) -> None:
    said = facts(server.generate(prompt, 8, {"budget": 0.1, "keep_prefix": 300, "return_kept": True}))
    assert said["pruned"] and said["dense_tokens"] == 300
    assert said["slots_before"] == len(prompt) - 300
    assert said["slots_after"] == -(-(len(prompt) - 300) // 10)
    assert min(position for heads in kept_positions(said) for kept in heads for position in kept) >= 300


@pytest.mark.parametrize(("options", "slots"), [({"budget": 0.1}, 64), ({"budget": 40}, 40)])
def test_of_a_short_prompt_no_fraction_is_less_than_64_slots(
    server: Server, prompt: list[int], options: Any, slots: int
) -> None:
    said = facts(server.generate(prompt[:300], 4, options))
    assert said["pruned"] and said["slots_after"] == said["slots_least"] == slots
    assert said["budget_effective"] == slots / 300


def test_streaming(server: Server, prompt: list[int]) -> None:
    whole = server.generate(prompt, 12, {"budget": 0.1})
    server.flush()
    events = list(server.stream(prompt, 12, {"budget": 0.1}))
    assert len(events) > 2
    assert events[-1]["output_ids"] == whole["output_ids"]
    assert facts(events[-1]) == facts(whole)


BAD_OPTIONS = [
    {"budget": 0},
    {"budget": -1},
    {"budget": 1.5},
    {"budget": "half"},
    {"budget": True},
    {"keep_prefix": -1},
    {"keep_prefix": 1.5},
    {"enabled": "no"},
    {"budgte": 0.1},
]


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_bad_options_fail_their_request_alone(server: Server, prompt: list[int], options: Any) -> None:
    response = server.post("/generate", **generation(prompt, 4, options))
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert next(iter(options)) in message.replace("-", "_") and "\n" not in message
    events = list(server.stream(prompt, 4, options))
    assert events[-1]["error"]["message"] == message
    assert facts(server.generate(prompt, 4, {"budget": 0.1}))["pruned"]


def test_options_by_a_header(server: Server, prompt: list[int], seed: int) -> None:
    text = " ".join(Task(seed).batch(1, 1000)[0].prompt())

    def post(path: str, options: str, **body: Any) -> requests.Response:
        return requests.post(server.url + path, json=body, headers={HEADER: options}, timeout=600)

    # With those of the body; each prompt of a body has them.
    body = generation(prompt, 8, {"keep_prefix": 300})
    alone = facts(post("/generate", '{"budget": 0.1}', **body).json())
    assert alone["pruned"] and alone["dense_tokens"] == 300
    assert alone["slots_after"] == -(-(len(prompt) - 300) // 10)
    server.flush()
    for reply in post("/generate", '{"budget": 0.1}', **body | {"input_ids": [prompt, prompt[:900]]}).json():
        assert facts(reply)["pruned"] and facts(reply)["budget_effective"] == pytest.approx(0.1, abs=0.01)
    user = {"model": "default", "max_tokens": 4, "messages": [{"role": "user", "content": text}]}
    for path, asked in {
        "/v1/chat/completions": user,
        "/v1/completions": {"model": "default", "max_tokens": 4, "prompt": text},
    }.items():
        [said] = post(path, '{"budget": 0.08}', **asked).json()["metadata"]["laprox"]
        assert said["pruned"] and said["budget_effective"] == pytest.approx(0.08, abs=0.01)
        refused = post(path, '{"budget": 7.5}', **asked)
        assert refused.status_code == 400 and "budget 7.5 is out of range" in refused.json()["message"]
    # These have no place for options in their bodies, nor for facts in their replies.
    before = server.laprox()
    post("/v1/messages", '{"budget": 0.05}', **user).raise_for_status()
    [model] = openai.OpenAI(base_url=server.url + "/v1", api_key="none").models.list()
    asked = {"model": model.id, "input": text, "max_output_tokens": 6}
    post("/v1/responses", '{"budget": 0.08}', **asked).raise_for_status()
    assert server.laprox()["pruned"] == before["pruned"] + 2
    for options, said in {
        "budget=0.1": f"{HEADER}: JSON is malformed",
        '{"keep_prefix": 200}': f"{HEADER} and custom_params.laprox say different things of keep_prefix",
        '{"instructions": {}}': "custom_params.laprox: Object contains unknown field `instructions`",
    }.items():
        response = post("/generate", options, **body)
        assert response.status_code == 400 and response.json()["error"]["message"].startswith(said)
    assert facts(server.generate(prompt, 4))["reason"] == "within_budget"


def test_sessions_are_refused(server: Server, prompt: list[int]) -> None:
    body = generation(prompt, 4, None, session_params={"id": "x"})
    response = server.post("/generate", **body)
    assert response.status_code == 400 and "session" in response.text


def test_openai_api(server: Server, seed: int) -> None:
    sample = Task(seed).batch(1, 1000)[0]
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none")
    before = server.laprox()

    def complete(options: Any) -> Any:
        return client.completions.create(
            model="default",
            prompt=" ".join(sample.prompt()),
            max_tokens=8,
            temperature=0,
            extra_body={"custom_params": {"laprox": options}},
        )

    reply = complete({"budget": 0.1})
    assert reply.usage.prompt_tokens == len(sample.prompt())
    assert len(reply.choices[0].text.split()) == 8
    assert server.laprox()["pruned"] == before["pruned"] + 1
    with pytest.raises(openai.BadRequestError, match="budget"):
        complete({"budget": 7.5})


@sgl.function
def ask(s: Any, prompt: str) -> None:
    s += prompt
    s += sgl.gen("answer", max_tokens=8, temperature=0)


def test_frontend_program(server: Server, seed: int) -> None:
    sample = Task(seed).batch(1, 1000)[0]
    state = ask.run(" ".join(sample.prompt()), backend=sgl.RuntimeEndpoint(server.url))
    assert state["answer"].split()[:4] == sample.answers[0]
    assert state.get_meta_info("answer")["laprox"][-1]["reason"] == "within_budget"


def other_weights(folder: Path) -> Path:
    """The model with half of the heads of its last layer put out: their values weigh nothing any more."""
    shutil.copytree(MODEL_PATH, folder)
    [file] = folder.glob("*.safetensors")
    weights = load_file(file)
    projection = weights["model.layers.7.self_attn.o_proj.weight"]
    projection[:, : projection.shape[1] // 2] = 0
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def test_weight_update(server: Server, prompt: list[int], tmp_path: Path) -> None:
    def pruned() -> dict[str, Any]:
        return server.generate(prompt, 8, {"budget": 0.1, "return_kept": True})

    def ask(path: str, **given: Any) -> None:
        # SGLang refuses while the last request is on its way out.
        server.flush()
        response = server.post(path, **given)
        assert response.ok and response.json()["success"], response.text

    before = pruned()
    kept = facts(before)["kept_positions"]
    other = str(other_weights(tmp_path / "other"))
    ask("/update_weights_from_disk", model_path=other)
    try:
        # The prompt's Q, K and V are the same in every layer: only new Gram matrices score otherwise.
        new = facts(pruned())["kept_positions"]
        assert new != kept
        # Within a session they are those of before, whatever the weights are; its end makes them anew.
        ask("/begin_weight_update", selector="all")
        ask("/update_weights_from_disk", model_path=str(MODEL_PATH))
        assert facts(pruned())["kept_positions"] == new
        ask("/end_weight_update")
        assert facts(pruned())["kept_positions"] == kept
    finally:
        ask("/update_weights_from_disk", model_path=str(MODEL_PATH))
    after = pruned()
    assert facts(after) == facts(before) and after["output_ids"] == before["output_ids"]


def test_totals(server: Server, prompt: list[int]) -> None:
    before = server.laprox()
    said = facts(server.generate(prompt, 8, {"budget": 0.1}))
    server.generate(prompt[:100], 8)
    after = server.laprox()
    assert json.dumps(after)
    assert after["requests"] == before["requests"] + 2
    assert after["pruned"] == before["pruned"] + 1
    assert after["pruned_share"] == pytest.approx(after["pruned"] / after["requests"])
    assert after["unpruned"]["short"] == before["unpruned"].get("short", 0) + 1
    assert after["slots_freed"] - before["slots_freed"] == said["slots_before"] - said["slots_after"]
    assert after["slots_held"] - before["slots_held"] in range(
        said["slots_after"] + 107, said["slots_after"] + 117
    )
