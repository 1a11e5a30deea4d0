"""What a GPU has room for at Llama-3.1-8B shapes: how large a pool, which servers at once."""

from dataclasses import dataclass

import torch

from benchmarks.serving.workloads import FIXED_SLOTS

# Of the card's memory for weights and KV pool, as the servers are told.
MEMORY_FRACTION = 0.88
# bf16 weights and what SGLang keeps beside them; the K and V of a token; graphs and activations.
WEIGHTS, SLOT_BYTES, WORKING = 17e9, 131_072, 5e9
# Pools are whole numbers of prompts of 32K; two with their answers are the least that says something.
PROMPT_SLOTS, LEAST_SLOTS = 32_768, 3 * 32_768
# What every workload that is to run out of memory was sized for.
H200_SLOTS = 860_000
# A driver's own; more is somebody's program.
IDLE_BYTES = 2e9
GIB = 2**30


@dataclass(frozen=True)
class Card:
    """One GPU; bytes."""

    name: str
    total: float
    used: float

    @property
    def slots(self) -> int:
        """KV slots of one server that takes all that it may."""
        return max(0, int((MEMORY_FRACTION * self.total - WEIGHTS) // SLOT_BYTES))

    @property
    def fixed_slots(self) -> int:
        """Size of the fixed pool: the same on every card that has room for it."""
        return min(FIXED_SLOTS, self.slots // PROMPT_SLOTS * PROMPT_SLOTS)

    @property
    def share(self) -> float:
        """Its full pool as a share of an H200's."""
        return min(1.0, self.slots / H200_SLOTS)

    def holds(self, servers: int, slots: int) -> bool:
        """Whether that many servers with pools of ``slots`` fit beside each other."""
        return servers * (WEIGHTS + slots * SLOT_BYTES + WORKING) <= 0.97 * self.total

    def fault(self) -> str | None:
        """Why the benchmark cannot run on it, in one line."""
        total, used = self.total / GIB, self.used / GIB
        if self.used > IDLE_BYTES:
            return (
                f"{used:.0f} of the {total:.0f} GiB of {self.name} are in use by another program: "
                "the pools would not be those that the figures mean; end it first"
            )
        if self.slots < LEAST_SLOTS:
            needed = (LEAST_SLOTS * SLOT_BYTES + WEIGHTS) / MEMORY_FRACTION / GIB
            return (
                f"{self.name} has {total:.0f} GiB: 8B shapes with three prompts of 32K need {needed:.0f}; "
                "--quick runs anywhere"
            )
        return None


def find_card() -> Card | None:
    """The first GPU; None where there is none."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return Card(properties.name, properties.total_memory, torch.cuda.device_memory_used(0))
