"""Without a GPU the kernels run in Triton's interpreter, to be chosen before Triton is imported."""

import os
import sys

import pytest
import torch

if not torch.cuda.is_available():
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise pytest.UsageError(
            "Triton was imported before its interpreter was chosen: run `pytest tests/kernels` alone"
        )
    os.environ["TRITON_INTERPRET"] = "1"
    # Threads cost more than they give: the interpreter's tensors are blocks of a few numbers.
    torch.set_num_threads(1)

POISON = {torch.uint8: 0x7F, torch.int16: 0x7FFF, torch.int32: -(2**30), torch.int64: -(2**40)}


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Whatever a kernel is to write holds NaN, or an absurd integer, before."""
    empty = torch.empty

    def poisoned_empty(*size, **options):
        tensor = empty(*size, **options)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else POISON[tensor.dtype])

    monkeypatch.setattr(torch, "empty", poisoned_empty)


@pytest.fixture
def seed(seed):
    """The run's seed, in Torch too."""
    torch.manual_seed(seed)
    return seed
