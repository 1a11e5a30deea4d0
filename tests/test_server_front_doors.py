"""SGLang's Rust server in front of the scheduler, where nobody but the scheduler checks options."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.harness.client import generation
from laprox_tools.needle import Task
from server import Server

pytestmark = pytest.mark.full

BUDGET, SECONDS = 0.1, 60
FLAGS = ("--enable-laprox", "--laprox-budget", str(BUDGET), "--enable-metrics")
# By what is said of them; the fault that they are counted as.
BAD = [
    ({"budget": 7.5}, "budget 7.5 is out of range", "value"),
    ({"budget": 0.5}, "custom_params.laprox.budget 0.5 is above the server's 0.1", "value"),
    ({"budgte": 0.1}, "custom_params.laprox: Object contains unknown field `budgte`", "malformed"),
    ({"return_kept": True}, "custom_params.laprox.return_kept may not be set by requests", "not_allowed"),
    ("{}", "custom_params.laprox: Expected `object`, got `str`", "malformed"),
]


@pytest.fixture
def prompt(seed: int) -> list[int]:
    return Task(seed).batch(1, 1000)[0].prompt_ids()


def counted(server: Server, name: str, label: str) -> Counter[str]:
    """A metric by one of its labels."""
    page = requests.get(f"{server.url}/metrics", timeout=SECONDS).text
    counts: Counter[str] = Counter()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == name:
                counts[sample.labels[label]] += int(sample.value)
    return +counts


def check_bad_options(server: Server, prompt: list[int]) -> None:
    """Each fails its request alone, in one line, and is counted once."""
    before = counted(server, "laprox_refused_requests_total", "fault")
    for options, said, _ in BAD:
        response = server.post("/generate", **generation(prompt, 4, options))
        message = response.json()["error"]["message"]
        assert response.status_code == 400 and message.startswith(said) and "\n" not in message
    *_, last = server.stream(prompt, 4, BAD[0][0])
    assert last["error"]["message"].startswith(BAD[0][1])
    refused = counted(server, "laprox_refused_requests_total", "fault") - before
    assert refused == Counter([fault for *_, fault in (*BAD, BAD[0])])


class TestRustServer:
    @pytest.fixture(scope="class")
    def server(self) -> Iterator[Server]:
        with Server(*FLAGS, "--laprox-keep-prefix", "0", SGLANG_RUST_SERVER="1") as server:
            yield server

    def test_it_prunes_and_says_so_in_metrics_alone(self, server: Server, prompt: list[int]) -> None:
        reply = server.generate(prompt, 8, {"budget": 0.05})
        assert len(reply["output_ids"]) == 8 and "laprox" not in reply["meta_info"]
        server.generate(prompt, 8, {"enabled": False})
        messages = [{"role": "user", "content": " ".join(Task(1).batch(1, 600)[0].prompt())}]
        body: dict[str, Any] = {"model": "default", "messages": messages, "max_tokens": 4}
        server.post("/v1/chat/completions", **body).raise_for_status()
        counts = counted(server, "laprox_requests_total", "outcome")
        assert (counts["pruned"], counts["whole"]) == (2, 1)
        assert counted(server, "laprox_requests_total", "reason")["disabled"] == 1

    def test_bad_options_fail_their_request_alone(self, server: Server, prompt: list[int]) -> None:
        check_bad_options(server, prompt)
        response = server.post("/generate", **generation(prompt, 4, {"keep_prefix": "system"}))
        assert response.status_code == 400 and "keep_prefix system: SGLang's Rust server" in response.text
        server.generate(prompt, 8)
