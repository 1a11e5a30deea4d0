"""What is asked of stock SGLang and of LaProx, each in an engine of its own, in a fork of this process."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.harness.client import chosen_logprobs, facts
from benchmarks.models.candidates import Candidate
from benchmarks.models.verdict import OPTED_OUT, STOCK, VIEW, WHOLE, Answer, Answers
from laprox_sglang.options.server import SINK_TOKENS, WINDOW
from laprox_sglang.options.values import ConfigError

TOKENS = 8
ENGINE = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "dtype": "float32",
    "max_total_tokens": 4096,
    "max_running_requests": 4,
    "skip_tokenizer_init": True,
    "log_level": "info",
}
LAPROX: dict[str, Any] = {
    "budget": 1.0,
    "keep_prefix": 0,
    "min_tokens": 64,
    "request_options": ("budget", "enabled", "return_kept"),
}
OPTIONS: dict[str, dict[str, Any]] = {
    OPTED_OUT: {"enabled": False},
    WHOLE: {},
    # As small as a view can be.
    VIEW: {"budget": WINDOW + SINK_TOKENS, "return_kept": True},
}


def ask_stock(model: Path, candidate: Candidate, prompts: list[list[int]]) -> Answers:
    from sglang.srt.entrypoints.engine import Engine

    with in_forks():
        engine = Engine(**arguments(model, candidate))
    return {STOCK: [ask(engine, ids, None) for ids in prompts]}


def ask_laprox(model: Path, candidate: Candidate, prompts: list[list[int]]) -> Answers:
    from laprox_sglang.engine import Engine

    try:
        with in_forks():
            engine = Engine(laprox=LAPROX, **arguments(model, candidate))
    except ConfigError as error:
        # As a command line is told.
        raise SystemExit(f"laprox: {error}") from None
    return {kind: [ask(engine, ids, options) for ids in prompts] for kind, options in OPTIONS.items()}


def arguments(model: Path, candidate: Candidate) -> dict[str, Any]:
    return {"model_path": str(model), **ENGINE, **candidate.flags}


@contextmanager
def in_forks() -> Iterator[None]:
    """SGLang spawns its processes, and each would import SGLang once more."""
    multiprocessing.set_start_method("fork", force=True)
    with patch.object(multiprocessing, "set_start_method"):
        yield


def ask(engine: Any, ids: list[int], options: dict[str, Any] | None) -> Answer:
    """Asks with an empty cache, so that stock and LaProx compute the same.

    Args:
        options: LaProx's of the request; None where there is no LaProx.
    """
    sampling: dict[str, Any] = {"max_new_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    if options is not None:
        sampling["custom_params"] = {"laprox": options}
    reply = engine.generate(input_ids=ids, sampling_params=sampling, return_logprob=True)
    engine.flush_cache()
    answer = Answer(ids=reply["output_ids"], logprobs=chosen_logprobs(reply))
    if options is not None:
        answer["facts"] = facts(reply)
    return answer
