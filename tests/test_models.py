"""The table of models: what becomes of one, and a few of them for real."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.models.candidates import CANDIDATES
from benchmarks.models.record import Record
from benchmarks.models.verdict import (
    FAILED,
    OPTED_OUT,
    REFUSED,
    SERVED,
    STOCK,
    STOCK_FAILS,
    VIEW,
    WHOLE,
    in_words,
    is_right,
    judged,
    loaded_class,
    reason,
)

ROOT = Path(__file__).resolve().parent.parent
# The widest group, a class of Hugging Face's, one that is refused once it is loaded and one before.
SOME = {
    "Llama, group 16": (SERVED, "LlamaForCausalLM"),
    "SmolLM3": (SERVED, "TransformersForCausalLM"),
    "Gemma 3": (REFUSED, "Gemma3ForCausalLM"),
    "DeepSeek-V2": (REFUSED, "DeepseekV2ForCausalLM"),
}


@pytest.mark.full
def test_some_models_for_real(seed, tmp_path, figures):
    path = tmp_path / "models.jsonl"
    command = [sys.executable, "-m", "benchmarks.models", *SOME, "--json", path, "--seed", str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["model"]: (line["outcome"], line["class"]) for line in lines} == SOME
    assert all(line["reading"]["equal"] >= 0.99 * line["reading"]["cells"] for line in lines[:2])
    assert [line["why"].splitlines() for line in lines[2:]] == [[line["why"]] for line in lines[2:]]
    figures += [f"{line['model']}: {in_words(line)}" for line in lines[:2]]


def answers(ids=(5, 6), logprobs=(-1.0, -2.0), pruned=False):
    return [{"ids": list(ids), "logprobs": list(logprobs), "facts": {"pruned": pruned}}]


def verdict(reading=None, **changed):
    laprox = {OPTED_OUT: answers(), WHOLE: answers(), VIEW: answers(pruned=True)} | changed
    return judged({STOCK: answers()}, laprox, reading)


def reading(stock, views):
    return {STOCK: stock, VIEW: views, "cells": 100.0, "equal": 99.0}


def test_a_model_is_right_where_nothing_tells_it_from_stock():
    assert is_right(verdict()) and is_right(verdict(reading(1e-5, 1e-5)))
    assert in_words(verdict()).startswith("served, right; as stock: opted out 1 of 1, whole 1 of 1")
    assert "99.0% of 100 cells" in in_words(verdict(reading(0.0, 0.0)))


@pytest.mark.parametrize(
    "wrong",
    [
        verdict(**{OPTED_OUT: answers(ids=(5, 7))}),
        verdict(**{WHOLE: answers(logprobs=(-1.0, -2.0000001))}),
        verdict(**{VIEW: answers(pruned=False)}),
        verdict(reading(1e-5, 2e-3)),
        verdict(reading(1e-5, 1e-5) | {"equal": 90.0}),
        judged({STOCK: answers()}, "KeyError: 'x'", None),
    ],
)
def test_a_model_that_answers_otherwise_is_not(wrong):
    assert not is_right(wrong) and "right" not in in_words(wrong).replace("NOT RIGHT", "")


@pytest.mark.parametrize(
    ("stock", "laprox", "outcome"),
    [
        ({STOCK: answers()}, "laprox: … is not served: it has sinks", REFUSED),
        ("KeyError: 'x'", "laprox: … is not served: it has sinks", REFUSED),
        ("KeyError: 'x'", "KeyError: 'x'", STOCK_FAILS),
        ("KeyError: 'x'", {VIEW: answers()}, STOCK_FAILS),
        ({STOCK: answers()}, "KeyError: 'x'", FAILED),
    ],
)
def test_what_is_not_served_says_why(stock, laprox, outcome):
    told = judged(stock, laprox, None)
    assert told["outcome"] == outcome and told["why"] in (stock, laprox)


def test_the_line_that_says_why_is_found_in_a_log():
    log = "[x] Load weight end. elapsed=0.1 s, type=Gemma2ForCausalLM\n  File x\nValueError: y\n"
    assert loaded_class(log) == "Gemma2ForCausalLM" and loaded_class("") is None
    assert reason(log) == "ValueError: y"
    assert reason(f"{log}laprox: no\nRuntimeError: z") == "laprox: no"
    raised = 'raise SystemExit(f"laprox: {error}")'
    assert reason(f"{log}  {raised}\nSystemExit: laprox: no") == "laprox: no"
    assert reason("killed") == "killed" and reason("") == "it says nothing"


def test_a_run_goes_on_where_the_last_one_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.models.record.made_by", lambda: {"commit": "c"})
    monkeypatch.setattr("benchmarks.models.record.same_origin", lambda part: part.get("commit") == "c")
    path = tmp_path / "models.jsonl"
    for name in ("Llama", "Gemma 2", "Llama"):
        record = Record(path)
        record.put(name, 0, {"outcome": REFUSED, "why": name})
    assert [record.holds(name) for name in CANDIDATES if name in ("Llama", "Gemma 2", "Qwen2")] == [
        True, False, True,
    ]  # fmt: skip
    assert list(record.lines) == ["Llama", "Gemma 2"] == [json.loads(x)["model"] for x in path.open()]
