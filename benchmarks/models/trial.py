"""One model: made of random weights, asked by stock SGLang and with LaProx, read by Hugging Face's code."""

import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.models.candidates import SHAPE, Candidate
from benchmarks.models.engines import LAPROX, OPTIONS, ask_laprox, ask_stock
from benchmarks.models.fork import Fork
from benchmarks.models.verdict import NOT_MADE, STOCK, VIEW, Answers, judged, loaded_class, reason
from benchmarks.quality.methods.choice import Chooser, cells_of
from benchmarks.quality.methods.reader import Model, everything
from benchmarks.quality.served import compare
from laprox_sglang.options.server import Config
from laprox_sglang.report.positions import kept_positions

# For all of it. On an idle machine it takes 10, where kernels are interpreted 60.
SECONDS = 600
PROMPTS, LENGTHS = 3, range(80, 120)
# So that heads attend to a few tokens each, as trained ones do.
DEVIATION = 0.1


def attempt(candidate: Candidate, seed: int) -> dict[str, Any]:
    """What became of a model (``verdict.judged``)."""
    with tempfile.TemporaryDirectory(prefix="laprox-models-") as place:
        folder, deadline = Path(place), time.monotonic() + SECONDS
        model = folder / "model"
        make = Fork(lambda: make_model(candidate, model, seed), folder / "make.log")
        make.wait(deadline)
        if make.result is None:
            return {"outcome": NOT_MADE, "why": reason(make.log)}
        prompts = draw_prompts(seed)
        stock = Fork(lambda: ask_stock(model, candidate, prompts), folder / "stock.log")
        laprox = Fork(lambda: ask_laprox(model, candidate, prompts), folder / "laprox.log")
        for fork in (stock, laprox):
            fork.wait(deadline)
        both = stock.result, laprox.result
        # Of quantized weights Hugging Face has those of before.
        read = all(both) and not candidate.flags
        reader = Fork(lambda: compared(model, prompts, *both) if read else None, folder / "reader.log")
        reader.wait(deadline)
        name = loaded_class(stock.log) or make.result
        said = [fork.result or reason(fork.log).replace(f"{place}/", "") for fork in (stock, laprox)]
        return {"class": name, **judged(said[0], said[1], reader.result)}


def make_model(candidate: Candidate, folder: Path, seed: int) -> str:
    """Writes a model; returns its architecture."""
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f"{candidate.config}Config")(**SHAPE | dict(candidate.shape))
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter) * DEVIATION
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    model.save_pretrained(folder)
    return str(model.config.architectures[0])


def draw_prompts(seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    return [draw.choices(range(3, SHAPE["vocab_size"]), k=draw.choice(LENGTHS)) for _ in range(PROMPTS)]


def compared(folder: Path, prompts: list[list[int]], stock: Answers, laprox: Answers) -> dict[str, float]:
    """Both beside Hugging Face's code of the model, which reads the cells that LaProx says it kept.

    Returns:
        Of ``stock`` and of ``view`` the largest difference of log-probs; how many ``cells`` were kept, and of
        them are the reference's, ``equal``.
    """
    model = Model(folder)
    found = {STOCK: 0.0, VIEW: 0.0, "cells": 0.0, "equal": 0.0}
    for ids, whole, viewed in zip(prompts, stock[STOCK], laprox[VIEW], strict=True):
        prefix = model.prefill(ids)
        cells = cells_of(kept_positions(viewed["facts"]), 0, len(ids))
        for kind, answer, kept in ((STOCK, whole, everything(model, prefix)), (VIEW, viewed, cells[None])):
            (logprobs,) = model.follow(prefix, answer["ids"][:-1], kept)
            expected = logprobs.gather(1, torch.tensor(answer["ids"])[:, None])[:, 0]
            found[kind] = max(found[kind], float((expected - torch.tensor(answer["logprobs"])).abs().max()))
        choice = compare(cells, Chooser(model, prefix), Config(**LAPROX), OPTIONS[VIEW]["budget"])
        found |= {name: found[name] + choice[name] for name in ("cells", "equal")}
    return found
