"""The servers that the serving benchmark compares: their flags, and what it asks of them beside text."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.client import Client
from benchmarks.harness.server import CPU_FLAGS, GPU_FLAGS, GPU_START_SECONDS, START_SECONDS, Launch
from benchmarks.serving.workloads import BUDGET, KEEP_PREFIX, LAPROX, QUICK_KEEP_PREFIX
from laprox_sglang.needle import MODEL_PATH

LLAMA_8B = Path(__file__).parents[1] / "models" / "llama-3.1-8b"
# Streams carry what is new, not all so far: long answers would otherwise make the web server the limit.
COMMON_FLAGS = ["--enable-metrics", "--incremental-streaming-output"]
LLAMA_FLAGS = [
    *("--load-format", "dummy", "--attention-backend", "flashinfer", "--context-length", "40960"),
    *("--mem-fraction-static", "0.88", "--decode-log-interval", "20"),
]
POOLS = {"fixed": 262_144, "full": None}
QUICK_POOLS = {"fixed": 2_600, "full": 6_000}
# What a results file says about its servers: as they report it, so that it holds for attached ones too.
SETTINGS = (
    "attention_backend dtype load_format context_length max_total_tokens mem_fraction_static "
    "chunked_prefill_size cuda_graph_max_bs_decode cuda_graph_backend_prefill decode_log_interval "
    "schedule_policy disable_overlap_schedule disable_radix_cache incremental_streaming_output"
).split()
GRAPH_SIZES = {"fixed": 64, "full": 128}


@dataclass(frozen=True)
class Machine:
    """Where the benchmark runs, and in which size.

    Attributes:
        gpu: a GPU is there. ``quick`` alone runs without one.
    """

    gpu: bool
    quick: bool

    def slots(self, pool: str) -> int | None:
        """Size of a pool; None where it is whatever the GPU has room for."""
        return (QUICK_POOLS if self.quick else POOLS)[pool]

    def keep_prefix(self, pool: str) -> int:
        """What a LaProx server keeps whole by default: the full pool serves the shared prompts."""
        if pool == "fixed":
            return 0
        return QUICK_KEEP_PREFIX if self.quick else KEEP_PREFIX

    def together(self, pool: str) -> bool:
        """Whether both servers fit beside each other, so that runs can alternate between them."""
        return self.gpu and self.slots(pool) is not None

    def flags(self, server: str, pool: str) -> list[str]:
        flags = ["--model-path", str(LLAMA_8B if self.gpu else MODEL_PATH)]
        flags += [*(GPU_FLAGS if self.gpu else CPU_FLAGS), *COMMON_FLAGS]
        if self.gpu:
            flags += [*LLAMA_FLAGS, "--cuda-graph-max-bs-decode", str(GRAPH_SIZES[pool])]
            if self.quick:
                flags += ["--json-model-override-args", json.dumps({"num_hidden_layers": 2})]
        else:
            flags += ["--decode-log-interval", "4"]
        if (slots := self.slots(pool)) is not None:
            flags += ["--max-total-tokens", str(slots)]
        if server == LAPROX:
            flags += ["--enable-laprox", "--laprox-budget", str(BUDGET)]
            if keep := self.keep_prefix(pool):
                flags += ["--laprox-keep-prefix", str(keep)]
        return flags

    def launch(self, server: str, pool: str, logs: Path) -> Launch:
        seconds = GPU_START_SECONDS if self.gpu else START_SECONDS
        flags = self.flags(server, pool)
        return Launch(server, flags, logs / f"{server}-{pool}.log", self.gpu, seconds)


class Service(Client):
    """A server that runs, whoever started it.

    Attributes:
        slots: size of its KV pool.
        settings: what it reports about itself.
    """

    def __init__(self, name: str, url: str) -> None:
        super().__init__(url)
        self.name = name
        info = self.info()
        self.backend: str = str(info.get("attention_backend"))
        self.slots: int = int(info["max_total_num_tokens"])
        self.settings: dict[str, Any] = {key: info.get(key) for key in SETTINGS}
        if (laprox := info["internal_states"][0].get("laprox")) is not None:
            self.settings["laprox"] = laprox["config"]

    def totals(self) -> dict[str, Any] | None:
        """What LaProx counted since the start; None on a stock server."""
        return self.laprox() if "laprox" in self.settings else None

    def start_profile(self, folder: Path) -> None:
        body = {"output_dir": str(folder), "activities": ["CPU", "GPU"]}
        self.post("/start_profile", **body, with_stack=False, record_shapes=False).raise_for_status()

    def stop_profile(self) -> None:
        """Returns when the trace is written."""
        self.post("/stop_profile").raise_for_status()
