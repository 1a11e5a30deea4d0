"""What SGLang 0.5.23 makes of a GPU that it is told nothing about (``arg_groups/memory_hook.py``)."""

from typing import NamedTuple

GIB = 2**30
# Memory that a card has on its label and a server does not find: driver, CUDA context, ECC.
TAKEN_GIB = 1.5
# Of one kind of decode graphs, per request of the largest; of a prefill graph.
DECODE_GRAPH_MIB, PREFILL_GRAPH_MIB = 2, 8
MAX_PREFILL_TOKENS = 16_384
# Above this much memory SGLang leaves at least so much free.
LARGE_GIB, LEAST_FREE_MIB = 60, 10 * 1024
FEWEST_RUNNING, MOST_RUNNING = 2048, 4096


class Card(NamedTuple):
    """A GPU of ``memory`` GiB, by its label.

    Attributes:
        chunk: tokens of a prefill chunk.
        graph_rows: requests of the largest decode graph.
        prefill_graphs: how many there are.
    """

    memory: float
    chunk: int
    graph_rows: int
    prefill_graphs: int

    def static_fraction(self, graph_rows: int, kinds_of_graphs: int = 1) -> float:
        """Default of ``--mem-fraction-static``.

        Args:
            kinds_of_graphs: LaProx captures every batch size twice, of which SGLang knows nothing.
        """
        free = 512 + 1.5 * max(self.chunk, 2048) + 1024 / 8
        free += DECODE_GRAPH_MIB * graph_rows * kinds_of_graphs + PREFILL_GRAPH_MIB * self.prefill_graphs
        if self.memory > LARGE_GIB:
            free = max(free, LEAST_FREE_MIB)
        return round(1 - free / (self.memory * 1024), 3)

    def pool_bytes(self, fraction: float, weights: int) -> int:
        """Bytes that the KV pool gets."""
        return int((self.memory - TAKEN_GIB) * GIB * fraction) - weights


def card(memory: float) -> Card:
    """The GPU with ``memory`` GiB."""
    sizes = (
        # below GiB, chunk, decode graphs, prefill graphs
        (20, 2048, 8, 42),
        (35, 4096, 48, 50),
        (60, 4096, 32, 50),
        (160, 8192, 256, 58),
    )
    for below, *defaults in sizes:
        if memory < below:
            return Card(memory, *defaults)
    return Card(memory, 16_384, 512, 74)


def most_running(slots: int, context: int) -> int:
    """Default of ``--max-running-requests``."""
    return max(min(slots * 512 // context, MOST_RUNNING), FEWEST_RUNNING)
