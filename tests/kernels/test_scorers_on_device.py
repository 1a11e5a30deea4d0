"""Every scorer and allocator on the device that serves: nothing waits for it, and the result is the CPU's."""

import pytest
import torch
from kernel_cases import DEVICE, GPU

from laprox_sglang.scorers import SCORERS
from laprox_sglang.scorers.allocators import allocation, keep
from laprox_sglang.scorers.pooling import KINDS, Pooling
from laprox_sglang.scorers.rank import compare_layers, rank
from scorer_cases import random_case


def prune(case, name, kind, allocator, scores):
    sums = rank(case.layers(), SCORERS[name], Pooling(kind, 3), scores)
    compare_layers(scores, sums, case.candidates)
    ranked = scores.clone()
    return ranked, *keep(scores, case.slots, allocator, case.protected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCORERS)
def test_nothing_waits_for_the_device(seed, name, kind):
    case = random_case(seed, DEVICE, most=3000 if GPU else 90)
    for allocator in (allocation("model"), allocation("model", 0.5), allocation("layer")):
        # What is made up first, cuBLAS say, may wait.
        prune(case, name, kind, allocator, case.unwritten())
        scores = case.unwritten()
        if GPU:
            torch.cuda.set_sync_debug_mode("error")
        try:
            ranked, kept, cu_cells = prune(case, name, kind, allocator, scores)
        finally:
            if GPU:
                torch.cuda.set_sync_debug_mode("default")
        same = random_case(seed, "cpu", most=3000 if GPU else 90)
        expected, _, _ = prune(same, name, kind, allocator, same.unwritten())
        # A generator's numbers differ from device to device; and where a score looks at what others cut off,
        # rounding may move the cut.
        close = torch.isclose(ranked.cpu(), expected, rtol=1e-2, atol=1e-6)
        assert name == "random" or float(close.float().mean()) > 0.99
        again = keep(ranked.cpu(), case.slots, allocator, case.protected)
        assert torch.equal(kept.cpu(), again[0]) and torch.equal(cu_cells.cpu(), again[1])
