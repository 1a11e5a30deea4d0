"""What a request is told about its prompt, in ``meta_info["laprox"]``."""

import base64
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from laprox_sglang.views.state import Outcome


def request_facts(
    outcome: Outcome, prompt_tokens: int, cached_tokens: int, return_kept: bool
) -> dict[str, Any]:
    """Facts about one request; plain numbers, lists and strings.

    Args:
        prompt_tokens: length of the prompt as it was sent.
        cached_tokens: how much of it came from the prefix cache.
        return_kept: add ``kept_positions``, whose bytes ``encode`` makes a string of.
    """
    plan, view = outcome.plan, outcome.view
    facts: dict[str, Any] = {
        "pruned": view is not None,
        "reason": plan.reason,
        "prompt_tokens": prompt_tokens,
        "cached_tokens": cached_tokens,
        "dense_tokens": plan.start if view else plan.end,
        "budget_effective": plan.slots / plan.length if plan.length else 1.0,
        "kept_cells": None,
        "kept_share": 1.0,
        "slots_before": plan.length,
        "slots_after": plan.slots,
        "layer_share": None,
    }
    if view is None:
        return facts
    cu_cells = view.host_cu_cells.tolist()
    kept, cells = cu_cells[-1], len(cu_cells) - 1
    by_layer = cu_cells[:: view.heads]
    facts["kept_cells"] = kept
    facts["kept_share"] = kept / (cells * plan.length)
    facts["layer_share"] = [(b - a) / kept for a, b in itertools.pairwise(by_layer)]
    if return_kept:
        assert view.positions is not None
        facts["kept_positions"] = {
            "heads": view.heads,
            "offsets": cu_cells,
            "int32": view.positions.tobytes(),
        }
    return facts


def encode(said: dict[str, Any]) -> dict[str, Any]:
    """Facts as they go out in JSON.

    Positions are millions of numbers: as a list they would stop every process that they pass through.
    """
    kept = said.get("kept_positions")
    if kept is None:
        return said
    return said | {"kept_positions": kept | {"int32": base64.b64encode(kept["int32"]).decode()}}


def kept_positions(said: Mapping[str, Any]) -> list[list[list[int]]]:
    """Kept token positions ``[L][H]`` in the facts of a reply, whose request set ``return_kept``."""
    kept = said["kept_positions"]
    positions = np.frombuffer(base64.b64decode(kept["int32"]), dtype="<i4")
    cells = [positions[a:b].tolist() for a, b in itertools.pairwise(kept["offsets"])]
    return [cells[i : i + kept["heads"]] for i in range(0, len(cells), kept["heads"])]
