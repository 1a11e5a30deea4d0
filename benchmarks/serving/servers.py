"""The servers that the serving benchmark compares: their flags, and what it asks of them beside text."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.client import Client, backend_of
from benchmarks.harness.server import (
    CPU_FLAGS,
    GPU_FLAGS,
    GPU_START_SECONDS,
    RETURN_KEPT,
    START_SECONDS,
    Launch,
)
from benchmarks.serving.card import MEMORY_FRACTION, Card
from benchmarks.serving.workload import BUDGET, FP8, LAPROX, STOCK
from benchmarks.serving.workloads import FIXED_SLOTS
from laprox_tools.needle import MODEL_PATH

LLAMA_8B = Path(__file__).parents[1] / "models" / "llama-3.1-8b"
# Streams carry what is new, not all so far: long answers would otherwise make the web server the limit.
COMMON_FLAGS = ["--enable-metrics", "--incremental-streaming-output"]
LLAMA_FLAGS = [
    *("--load-format", "dummy", "--context-length", "40960"),
    *("--mem-fraction-static", str(MEMORY_FRACTION), "--decode-log-interval", "20"),
]
# The usual alternative: half the bytes of every cell. Its backend is named because the fa3 at hand has no
# kernels for fp8.
FP8_BACKEND = "flashinfer"
FP8_FLAGS = ["--kv-cache-dtype", "fp8_e4m3", "--attention-backend", FP8_BACKEND]
QUICK_POOLS = {"fixed": 2_600, "full": 6_000}
# In small on a GPU: the same shapes, a few layers of them.
QUICK_LAYERS = 2
# What a results file says about its servers: as they report it, so that it holds for attached ones too.
SETTINGS = (
    "attention_backend kv_cache_dtype dtype load_format context_length max_total_tokens mem_fraction_static "
    "chunked_prefill_size cuda_graph_max_bs_decode cuda_graph_backend_prefill decode_log_interval "
    "schedule_policy disable_overlap_schedule disable_radix_cache incremental_streaming_output"
).split()
GRAPH_SIZES = {"fixed": 64, "full": 128}


@dataclass(frozen=True)
class Machine:
    """Where the benchmark runs, and in which size.

    Attributes:
        card: the GPU; without one only ``quick`` and servers that run already are driven.
        backend: attention backend that stock and LaProx are told to take; None leaves each its own choice.
    """

    card: Card | None
    quick: bool
    backend: str | None = None

    def slots(self, pool: str) -> int | None:
        """Size of a pool; None where it is whatever the GPU has room for."""
        if self.quick:
            return QUICK_POOLS[pool]
        if pool == "full":
            return None
        return FIXED_SLOTS if self.card is None else self.card.fixed_slots

    def together(self, pool: str, servers: int) -> bool:
        """Whether the servers fit beside each other, so that runs can alternate between them."""
        slots = self.slots(pool)
        return self.card is not None and slots is not None and self.card.holds(servers, slots)

    def lacks(self, server: str) -> str | None:
        """Why a server cannot be started here."""
        if server == FP8 and self.card is None:
            return "a CPU has no fp8 KV"
        if server == FP8 and self.backend is not None:
            return "--backend is of stock and LaProx"
        return None

    def flags(self, server: str, pool: str) -> list[str]:
        flags = ["--model-path", str(MODEL_PATH if self.card is None else LLAMA_8B), *COMMON_FLAGS]
        if self.card is not None:
            flags += [*GPU_FLAGS, *LLAMA_FLAGS, "--cuda-graph-max-bs-decode", str(GRAPH_SIZES[pool])]
            if self.quick:
                flags += ["--json-model-override-args", json.dumps({"num_hidden_layers": QUICK_LAYERS})]
        else:
            flags += [*CPU_FLAGS, "--decode-log-interval", "4"]
        if (slots := self.slots(pool)) is not None:
            flags += ["--max-total-tokens", str(slots)]
        if server == FP8:
            flags += FP8_FLAGS
        elif self.backend is not None:
            flags += ["--attention-backend", self.backend]
        if server == LAPROX:
            flags += ["--enable-laprox", "--laprox-budget", str(BUDGET), *RETURN_KEPT]
        return flags

    def launch(self, server: str, pool: str, logs: Path) -> Launch:
        on_gpu = self.card is not None
        seconds = GPU_START_SECONDS if on_gpu else START_SECONDS
        return Launch(server, self.flags(server, pool), logs / f"{server}-{pool}.log", on_gpu, seconds)


class Service(Client):
    """A server that runs, whoever started it.

    Attributes:
        backend: the attention backend that it resolved to; prefill / decode where they differ.
        model: where its model is.
        slots: size of its KV pool.
        settings: what it reports about itself.
    """

    def __init__(self, name: str, url: str) -> None:
        super().__init__(url)
        self.name = name
        info = self.info()
        self.backend = backend_of(info)
        self.model = Path(info["model_path"])
        self.slots: int = int(info["max_total_num_tokens"])
        self.settings: dict[str, Any] = {key: info.get(key) for key in SETTINGS}
        if (laprox := info["internal_states"][0].get("laprox")) is not None:
            self.settings["laprox"] = laprox["config"]

    @property
    def kind(self) -> str:
        """Which server it is, by what it reports."""
        if "laprox" in self.settings:
            return LAPROX
        return FP8 if str(self.settings["kv_cache_dtype"]).startswith("fp8") else STOCK

    def totals(self) -> dict[str, Any] | None:
        """What LaProx counted since the start; None on a stock server."""
        return self.laprox() if "laprox" in self.settings else None

    def start_profile(self, folder: Path) -> None:
        body = {"output_dir": str(folder), "activities": ["CPU", "GPU"]}
        self.post("/start_profile", **body, with_stack=False, record_shapes=False).raise_for_status()

    def stop_profile(self) -> None:
        """Returns when the trace is written."""
        self.post("/stop_profile").raise_for_status()
