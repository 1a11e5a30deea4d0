"""What SGLang chooses for a GPU where its flags say nothing: chunks, graphs, the KV pool's share of memory.

Its own code chooses (``arg_groups/memory_hook.py``), for a card that need not be in this machine.
"""

import warnings
from functools import cache
from typing import Any, NamedTuple
from unittest.mock import patch

from laprox_tools import CommandError
from laprox_tools.needle import MODEL_PATH

GIB = 2**30
# Memory that a card has on its label and a server does not find: driver, CUDA context, ECC.
TAKEN_GIB = 1.5


class Defaults(NamedTuple):
    """
    Attributes:
        args: SGLang's ``ServerArgs`` with the defaults of a card filled in.
    """

    args: Any

    @property
    def graph_rows(self) -> int:
        """Requests of the largest decode graph."""
        rows: int = self.args.cuda_graph_config.decode.max_bs
        return rows

    @property
    def static_fraction(self) -> float:
        """``--mem-fraction-static``."""
        fraction: float = self.args.mem_fraction_static
        return fraction


@cache
def defaults(memory: float, graph_rows: int | None = None) -> Defaults:
    """SGLang's choice for a GPU.

    Args:
        memory: GiB, by the card's label.
        graph_rows: ``--cuda-graph-max-bs-decode``, where it is given.

    Raises:
        CommandError: the SGLang here is not the one that LaProx serves.
    """
    check_sglang()
    with warnings.catch_warnings():
        # Of kernels that a machine without a GPU has no use for.
        warnings.simplefilter("ignore")
        from sglang.srt.arg_groups import memory_hook
        from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view
        from sglang.srt.model_executor.cuda_graph_config import Backend, CudaGraphConfig
        from sglang.srt.server_args import ServerArgs

        # The choice is the card's; of text models only Llama 2 has one of its own, 64 MiB less for graphs.
        args = ServerArgs(model_path=str(MODEL_PATH), device="cuda")
        graphs = CudaGraphConfig()
        # What SGLang takes on a GPU; without one it would be off.
        graphs.prefill.backend = Backend.BREAKABLE
        graphs.decode.max_bs = graph_rows
        declare_resolution(args, "laprox plan", cuda_graph_config=graphs)
        with patch.object(memory_hook, "get_device_memory_capacity", lambda device: memory * 1024):
            memory_hook.handle_gpu_memory_settings(args)
    return Defaults(resolving_view(args))


def laprox_static_fraction(memory: float, graph_rows: int) -> float:
    """``--mem-fraction-static`` that leaves room for the graphs of LaProx.

    LaProx captures every batch size twice, of which SGLang knows nothing. SGLang leaves memory free in
    proportion to the largest decode graph: for twice its rows, what two graphs of each size take.
    """
    return defaults(memory, 2 * graph_rows).static_fraction


def pool_bytes(memory: float, fraction: float, weights: int) -> int:
    """Bytes that the KV pool gets of a card with ``memory`` GiB; below 0 where the weights do not fit."""
    return int((memory - TAKEN_GIB) * GIB * fraction) - weights


def check_sglang() -> None:
    try:
        from laprox_patches.seam import SeamError
        from laprox_patches.version import check_version
    except ImportError as error:
        raise CommandError(f"SGLang cannot be imported: {error}; laprox doctor says more") from None
    try:
        check_version()
    except SeamError as error:
        raise CommandError(str(error)) from None
