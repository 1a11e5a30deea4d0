"""Kept positions on their way from the scheduler to whoever asked; imports neither SGLang nor torch."""

import base64
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    from laprox_sglang.report.facts import Facts, KeptPositions


def encode(said: "Facts") -> "Facts":
    """Facts as they go out in JSON.

    Positions are millions of numbers: as a list they would stop every process that they pass through.
    """
    kept = said.get("kept_positions")
    if kept is None or isinstance(kept["int32"], str):
        return said
    return said | {"kept_positions": kept | {"int32": base64.b64encode(kept["int32"]).decode()}}


def kept_positions(said: Mapping[str, object]) -> list[list[list[int]]]:
    """Kept token positions ``[L][H]`` in the facts of a reply, whose request set ``return_kept``."""
    kept = cast("KeptPositions | None", said["kept_positions"])
    if kept is None:
        raise ValueError("kept_positions is null: the request ended before its view was made")
    positions = np.frombuffer(base64.b64decode(kept["int32"]), dtype="<i4")
    cells = [positions[a:b].tolist() for a, b in itertools.pairwise(kept["offsets"])]
    return [cells[i : i + kept["heads"]] for i in range(0, len(cells), kept["heads"])]
