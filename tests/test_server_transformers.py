"""A model that SGLang has no class of its own for: Hugging Face's modules around SGLang's layers."""

import random

import pytest

from benchmarks.harness.server import RETURN_KEPT
from benchmarks.quality.methods.reader import Model
from laprox_tools.needle import MODEL_PATH
from prompts import check_oracle, oracle_cases
from server import Server

CHUNK = 700


@pytest.mark.full
def test_pruned_prompts_are_answered_as_by_the_oracle(seed: int, figures: list[str]) -> None:
    flags = ("--enable-laprox", "--laprox-budget", "1.0", "--chunked-prefill-size", str(CHUNK), *RETURN_KEPT)
    with Server(*flags, "--model-impl", "transformers") as server:
        cases = oracle_cases(random.Random(seed), CHUNK)
        figures.append(check_oracle(server, Model(MODEL_PATH), cases, minimum=20))
        assert "Using Transformers backend" in server.launch.log.read_text()
