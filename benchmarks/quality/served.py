"""What the real server says and keeps, beside what the reference keeps of the same prompt."""

from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.harness.client import facts
from benchmarks.harness.server import Server
from benchmarks.quality.methods.choice import Chooser, cells_of, plan_of
from laprox_sglang.options.server import Config
from laprox_sglang.options.values import Budget, slots_of_share
from laprox_sglang.report.positions import kept_positions
from laprox_sglang.scorers.allocators import floor_cells


@dataclass(frozen=True)
class Reply:
    """
    Attributes:
        ids: generated tokens.
        cells: bool ``[L, H, n]``, the kept ones; None if the prompt was left whole.
    """

    ids: list[int]
    cells: torch.Tensor | None


def ask(server: Server, prompts: dict[float | None, list[int]], tokens: int) -> dict[float | None, Reply]:
    """Greedy replies of ``tokens`` tokens, by the share that is kept; None leaves its prompt whole, and is
    asked first."""

    def options(share: float | None, length: int) -> dict[str, Any]:
        if share is None:
            return {"enabled": False}
        # A number: of a short prompt a server keeps more than a fraction of it.
        return {"budget": slots_of_share(share, length), "return_kept": True}

    # Two at least: the first one reads no view, and a prompt that nothing follows has none.
    asked = [
        {
            **{"ids": ids, "tokens": max(2, tokens), "laprox": options(share, len(ids))},
            "sampling": {"ignore_eos": True},
        }
        for share, ids in prompts.items()
    ]
    # The others find the document in the prefix cache, and come at once.
    said = server.generate_all(asked[:1], 1) + server.generate_all(asked[1:], len(asked))
    found = {}
    for (share, prompt), reply in zip(prompts.items(), said, strict=True):
        told = facts(reply)
        pruned = told["pruned"]
        cells = cells_of(kept_positions(told), told["dense_tokens"], len(prompt)) if pruned else None
        found[share] = Reply(reply["output_ids"][:tokens], cells)
    return found


def compare(cells: torch.Tensor, chooser: Chooser, config: Config, budget: Budget) -> dict[str, float]:
    """How far a server kept what the reference keeps.

    Returns:
        ``cells``: kept by the server; ``equal``: those that the reference keeps as well; ``gap``: how much
        higher, at most, the best score is that only the reference kept than the least that only the server
        kept, as a share of the former, among cells that compete. Ties in float32 come to 1e-4 and less.
    """
    reference = chooser.cells(config, budget)
    cells = cells.to(reference.device)
    found = {"cells": int(cells.sum()), "equal": int((cells & reference).sum()), "gap": 0.0}
    if found["equal"] < found["cells"]:
        plan = plan_of(config, budget, cells.shape[2])
        scores = chooser.scores(config, plan)
        reference, cells = reference[..., plan.start :], cells[..., plan.start :]
        best = scores.masked_fill(cells | ~reference, -torch.inf).amax(-1)
        least = scores.masked_fill(reference | ~cells, torch.inf).amin(-1)
        # A head that is held at its floor competes with no other.
        scope, floor = config.method.allocation
        least_cells = floor_cells(plan.least, plan.window + plan.sinks, floor)
        held = (cells.sum(-1) <= least_cells) | (reference.sum(-1) <= least_cells)
        rivals = (0, 1) if scope == "model" else (1,)
        free = gap(
            best.masked_fill(held, -torch.inf).amax(rivals), least.masked_fill(held, torch.inf).amin(rivals)
        )
        found["gap"] = max(gap(best, least), free)
    return found


def gap(best: torch.Tensor, least: torch.Tensor) -> float:
    """The largest ``1 - least / best``; where nothing was exchanged ``best`` is -inf or ``least`` +inf."""
    return torch.where(best > least, 1 - least / best, 0).max().item()
