"""Pictures: random models that see, beside what Hugging Face makes of the same weights and cells."""

import base64
import io
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.harness.client import check, chosen_logprobs, facts
from benchmarks.harness.server import RETURN_KEPT
from benchmarks.quality.methods.choice import Chooser
from benchmarks.quality.methods.reader import everything
from benchmarks.quality.served import compare
from laprox_sglang.options.server import WINDOW, Config
from laprox_sglang.report.positions import kept_positions
from prompts import EXACT, OPTED_OUT, cells_in, difference, farthest
from server import Server
from vision import KINDS, WORDS, SeeingModel, make_model

pytestmark = pytest.mark.full

BUDGET, TOKENS = 0.2, 9
# Cuts pictures in two.
CHUNK = 256
# Long enough to be interrupted.
LONG = 64
SAY_KEPT = {"return_kept": True}
SEE = "<|vision_start|><|image_pad|><|vision_end|>"
Reply = dict[str, Any]
Facts = dict[str, Any]
Message = dict[str, Any]


@dataclass
class Seer:
    """A server, and the oracle of its weights."""

    server: Server
    oracle: SeeingModel

    def ask(
        self, text: str, pictures: list[Image.Image], laprox: Any = SAY_KEPT, tokens: int = TOKENS
    ) -> Reply:
        sampling = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
        response = self.server.post(
            "/generate",
            text=text,
            image_data=[url(picture) for picture in pictures] or None,
            sampling_params=sampling | {"custom_params": {"laprox": laprox}},
            return_logprob=True,
        )
        check(response)
        reply: Reply = response.json()
        return reply

    def chat(self, *messages: Message, **more: Any) -> list[Facts]:
        """Facts of every choice."""
        response = self.server.post(
            "/v1/chat/completions",
            model="default",
            messages=messages,
            max_tokens=TOKENS,
            custom_params={"laprox": SAY_KEPT},
            return_meta_info=True,
            **more,
        )
        check(response)
        return [facts(choice) for choice in response.json()["choices"]]

    def check(self, text: str, pictures: list[Image.Image], reply: Reply) -> float:
        """Compares a pruned prompt with the oracle over the same cells, and these with the reference's."""
        prefix = self.oracle.see(text, pictures)
        said = facts(reply)
        assert said["pruned"] and said["prompt_tokens"] == len(prefix.ids) == said["slots_before"], said
        found = compare(cells_in(reply, prefix), Chooser(self.oracle, prefix), Config(), BUDGET)
        assert found["gap"] < EXACT.gap and found["equal"] > EXACT.equal * found["cells"], found
        return difference(self.oracle, prefix, reply)


def url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


@pytest.fixture(scope="module")
def seers(seed: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Seer]]:
    """Their servers start side by side."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in folders.items():
        make_model(kind, folder, seed)
    flags = ("--enable-laprox", "--laprox-budget", str(BUDGET), *RETURN_KEPT)
    more = ("--chunked-prefill-size", str(CHUNK), "--mm-attention-backend", "sdpa")
    servers = [Server(*flags, *more, "--model-path", str(folder)) for folder in folders.values()]
    with ThreadPoolExecutor() as pool, ExitStack() as stack:
        list(pool.map(stack.enter_context, servers))
        oracles = map(SeeingModel, folders.values())
        yield {
            kind: Seer(*each) for kind, each in zip(KINDS, zip(servers, oracles, strict=True), strict=True)
        }


@pytest.fixture(params=KINDS)
def seer(request: pytest.FixtureRequest, seers: dict[str, Seer]) -> Seer:
    seer: Seer = seers[request.param]
    seer.server.flush()
    return seer


@pytest.fixture
def draw(seed: int) -> random.Random:
    return random.Random(seed)


def picture(draw: random.Random, width: int = 224, height: int = 224) -> Image.Image:
    noise = np.random.default_rng(draw.getrandbits(32)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def words(draw: random.Random, number: int) -> str:
    return " ".join(draw.choices(WORDS, k=number))


def test_pictures_are_seen_through_a_view(seer: Seer, draw: random.Random, figures: list[str]) -> None:
    """One, the same again, another in its place, two, and a turn with one more; first all in one batch."""
    first, second, other = picture(draw), picture(draw, 448), picture(draw)
    one = f"{SEE}{words(draw, 250)}"
    two = f"{words(draw, 40)}{SEE}{words(draw, 9)}{SEE}{words(draw, 250)}"
    turn = f"{one} {words(draw, 9)}{SEE}{words(draw, 5)}"
    asked = [
        (one, [first]), (one, [first]), (one, [other]), (two, [first, second]), (two, [second, first]),
        (turn, [first, second]), (f"system {words(draw, 300)}", []),
    ]  # fmt: skip
    with ThreadPoolExecutor(len(asked)) as pool:
        at_once = list(pool.map(lambda each: seer.ask(*each), asked))
    seer.server.flush()
    replies = [seer.ask(*each) for each in asked]
    length = facts(replies[0])["prompt_tokens"]
    # All but the window; of another picture the mark before it; a turn all that was before it.
    known = [0, length - WINDOW, 1, 0, 40 + 1, length, 0]
    cached = [facts(reply)["cached_tokens"] for reply in replies]
    assert cached == known
    worst = max(seer.check(*each, reply) for each, reply in zip(asked * 2, at_once + replies, strict=True))
    figures.append(f"{len(asked)} prompts with pictures: log-probs differ by at most {worst:.1e}")


def test_a_whole_prompt_with_a_picture_is_the_model_s_own(seer: Seer, draw: random.Random) -> None:
    text, pictures = f"{words(draw, 99)}{SEE}{words(draw, 200)}", [picture(draw)]
    reply = seer.ask(text, pictures, OPTED_OUT)
    assert facts(reply)["reason"] == "disabled"
    prefix, ids = seer.oracle.see(text, pictures), reply["output_ids"]
    (logprobs,) = seer.oracle.follow(prefix, ids[:-1], everything(seer.oracle, prefix))
    farthest(logprobs, ids, chosen_logprobs(reply))


def test_a_retracted_request_sees_its_pictures_again(seer: Seer, draw: random.Random) -> None:
    """Nothing of them is left but what the request holds."""
    text, pictures = f"{SEE}{words(draw, 240)}{SEE}{words(draw, 5)}", [picture(draw), picture(draw, 448)]
    server = seer.server
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(seer.ask, text, pictures, tokens=LONG)
        server.wait_for("views")
        check(server.post("/pause_generation", mode="retract"))
        try:
            server.flush()
        finally:
            check(server.post("/continue_generation"))
        reply = asked.result()
    said, ids, prefix = facts(reply), reply["output_ids"], seer.oracle.see(text, pictures)
    assert reply["meta_info"]["num_retractions"] == 1 and said["pruned"] and len(ids) == LONG
    made = said["slots_before"] - len(prefix.ids)
    assert 0 < made < LONG
    history = seer.oracle.prefill(ids[:made], before=prefix)
    (logprobs,) = seer.oracle.follow(history, ids[made:-1], cells_in(reply, history)[None])
    farthest(logprobs, ids[made:], chosen_logprobs(reply)[made:])


def test_instructions_of_a_chat_with_pictures_stay_dense(seer: Seer, draw: random.Random) -> None:
    """A picture has one mark in what the template renders, and many tokens in the prompt."""
    system, later = words(draw, 30), words(draw, 20)
    sees = {"type": "image_url", "image_url": {"url": url(picture(draw))}}
    tells = {"type": "text", "text": words(draw, 280)}
    first = [{"role": "system", "content": system}, {"role": "user", "content": [sees, tells]}]
    # <|im_start|> system … <|im_end|> <|im_start|> user, with the ends of lines.
    dense = 3 + 30 + 2 + 3
    for messages in (first, [first[0], {"role": "user", "content": tells["text"]}]):
        for said in seer.chat(*messages, n=2):
            assert (said["pruned"], said["instructions"], said["dense_tokens"]) == (True, "dense", dense)
    more = [{"role": "assistant", "content": "w1"}, {"role": "system", "content": later}]
    [said] = seer.chat(*first, *more, {"role": "user", "content": words(draw, 9)})
    assert (said["instructions"], said["dense_tokens"]) == ("protected", dense), said
    # Up to the end of the prompt: the message, the question and the assistant's mark.
    behind = said["prompt_tokens"] - (20 + 2) - (3 + 9 + 2) - 3
    for layer in kept_positions(said):
        assert all({*range(behind, behind + 20)} <= {*head} for head in layer)
