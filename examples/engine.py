"""The engine in a program of its own, without a server: ``python examples/engine.py [MODEL]``.

Prints the answer to a question about a text, and what was kept of the text to answer it.
"""

import sys
from typing import Any

import torch

import laprox_sglang
from laprox_tools.needle import DIGITS, MODEL_PATH, Task

ON_CPU = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "dtype": "float32",
    "max_total_tokens": 8000,
}


def ask(model: str, prompt: str, tokens: int) -> tuple[str, dict[str, Any]]:
    where = {} if torch.cuda.is_available() else ON_CPU
    engine = laprox_sglang.Engine(model_path=model, grammar_backend="none", laprox={"budget": 0.1}, **where)
    try:
        reply = engine.generate(prompt, {"max_new_tokens": tokens, "temperature": 0})
    finally:
        engine.shutdown()
    return reply["text"], reply["meta_info"]["laprox"][-1]


# The engine starts processes that import this file.
if __name__ == "__main__":
    sample = Task(seed=7).batch(1, 800)[0]
    model = sys.argv[1] if len(sys.argv) > 1 else str(MODEL_PATH)
    answer, facts = ask(model, " ".join(sample.prompt()), DIGITS)
    print(f"{answer!r}  kept {facts['slots_after']} of {facts['slots_before']} slots")
