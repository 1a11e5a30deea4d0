"""How the servers that are compared are started, and what is asked of them beside text."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.client import Client, backend_of
from benchmarks.harness.server import CPU_FLAGS, GPU_FLAGS, GPU_START_SECONDS, START_SECONDS, Launch, cores
from benchmarks.serving.kinds import FP8_FLAGS, HOST_FLAGS, KINDS, SESSIONS
from laprox_tools.needle import MODEL_PATH

LLAMA_8B = Path(__file__).parents[1] / "models" / "llama-3.1-8b"
QUICK_HOST_FLAGS = ["--hicache-size", "0", "--hicache-ratio", "4"]
# As what a server reports them.
BUDGET_FLAGS = {"--laprox-budget": "budget", "--laprox-budget-max": "budget_max"}
# Streams carry what is new, not all so far: long answers would otherwise make the web server the limit.
COMMON_FLAGS = ["--enable-metrics", "--enable-cache-report", "--incremental-streaming-output"]
CONTEXT, MEMORY_FRACTION = 131_072, "0.88"
LLAMA_FLAGS = [
    *("--load-format", "dummy", "--context-length", str(CONTEXT), "--mem-fraction-static", MEMORY_FRACTION),
    *("--cuda-graph-max-bs-decode", "128", "--decode-log-interval", "20"),
]
QUICK_SLOTS = 6_000
# In small on a GPU: the same shapes, a few layers of them.
QUICK_LAYERS = 2
# What a results file says about its servers: as they report it, so that it holds for those that ran already.
SETTINGS = (
    "tp_size attention_backend kv_cache_dtype dtype load_format context_length max_total_tokens "
    "mem_fraction_static chunked_prefill_size cuda_graph_max_bs_decode cuda_graph_backend_prefill "
    "decode_log_interval "
    "schedule_policy disable_overlap_schedule disable_radix_cache incremental_streaming_output "
    "enable_hierarchical_cache hicache_size hicache_ratio hicache_mem_layout hicache_io_backend "
    "hicache_write_policy enable_session_radix_cache"
).split()
# bf16 weights at 8B shapes, and the K and V of a token; what an H200 has room for, by which loads were sized.
WEIGHTS, SLOT_BYTES, H200_SLOTS, LEAST_SLOTS = 17e9, 131_072, 860_000, 3 * 32_768
# A driver's own; more is somebody's program.
IDLE_BYTES = 2e9
GIB = 2**30


@dataclass(frozen=True)
class Card:
    """A GPU; bytes."""

    name: str
    total: float
    used: float

    @property
    def slots(self) -> int:
        """KV slots of a server that takes all that it may."""
        return max(0, int((float(MEMORY_FRACTION) * self.total - WEIGHTS) // SLOT_BYTES))

    @property
    def share(self) -> float:
        """Its KV pool as a share of an H200's."""
        return min(1.0, self.slots / H200_SLOTS)

    def fault(self) -> str | None:
        """Why no server can be measured on it, in one line."""
        total, used = self.total / GIB, self.used / GIB
        if self.used > IDLE_BYTES:
            return (
                f"{used:.0f} of the {total:.0f} GiB of {self.name} are in use by another program: "
                "the pools would not be those that the figures mean; end it first"
            )
        if self.slots < LEAST_SLOTS:
            needed = (LEAST_SLOTS * SLOT_BYTES + WEIGHTS) / float(MEMORY_FRACTION) / GIB
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


def flags(server: str, on_gpu: bool, quick: bool, model: Path, backend: str | None = None) -> list[str]:
    """Of ``sglang.launch_server``.

    Args:
        model: folder of the 8B shapes with a word for every token id (``write_model``).
        backend: attention backend that they are told to take.
    """
    found = ["--model-path", str(model if on_gpu else MODEL_PATH), *COMMON_FLAGS, *KINDS[server].flags]
    found += [*GPU_FLAGS, *LLAMA_FLAGS] if on_gpu else [*CPU_FLAGS, "--decode-log-interval", "4"]
    if quick:
        found += ["--max-total-tokens", str(QUICK_SLOTS)]
        if HOST_FLAGS[0] in found:
            found += QUICK_HOST_FLAGS
        if on_gpu:
            found += ["--json-model-override-args", json.dumps({"num_hidden_layers": QUICK_LAYERS})]
    if backend is not None:
        found += ["--attention-backend", backend]
    return found


def launch(
    server: str, logs: Path, on_gpu: bool, quick: bool, backend: str | None, more: list[str], ranks: int = 1
) -> Launch:
    seconds = GPU_START_SECONDS if on_gpu else START_SECONDS
    given = [*flags(server, on_gpu, quick, write_model(logs / "model"), backend), *more]
    environment = {} if on_gpu else cores(ranks)
    return Launch(server, given, logs / f"{server}.log", on_gpu, seconds, environment)


def write_model(folder: Path) -> Path:
    """Writes the 8B shapes with a tokenizer that has a word for every id, and returns the folder.

    Random weights generate any id. SGLang's client counts a chunk only if it has text, and sends the text
    back in the next turn: so every id must be a word, and every text the ids that it came from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in LLAMA_8B.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = json.loads((LLAMA_8B / "tokenizer.json").read_text())
    known = tokenizer["model"]["vocab"]
    size = json.loads((LLAMA_8B / "config.json").read_text())["vocab_size"]
    known |= {f"t{number}": number for number in range(len(known), size)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    about = json.loads((LLAMA_8B / "tokenizer_config.json").read_text())
    template = "{% for message in messages %}{{ message.content + ' ' }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(about | {"chat_template": template}))
    return folder


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

    def fault(self, gpus: int = 1) -> str | None:
        """Why it is not the server that its name means, on so many GPUs, in one line."""
        wanted = KINDS[self.name].flags
        said = {
            "laprox": ("--enable-laprox" in wanted, "laprox" in self.settings),
            "fp8 KV": (FP8_FLAGS[0] in wanted, str(self.settings["kv_cache_dtype"]).startswith("fp8")),
            "a host tier": (HOST_FLAGS[0] in wanted, bool(self.settings["enable_hierarchical_cache"])),
            "write_back": ("write_back" in wanted, self.settings["hicache_write_policy"] == "write_back"),
            SESSIONS: (SESSIONS in wanted, self.names_sessions),
            "--incremental-streaming-output": (True, bool(self.settings["incremental_streaming_output"])),
        }
        wrong = [
            f"{what}: {'asked for' if asked else 'there'}"
            for what, (asked, is_so) in said.items()
            if asked != is_so
        ]
        if (has := self.settings["tp_size"] or 1) != gpus:
            wrong.append(f"{has} GPUs in place of {gpus}")
        if "--laprox-budget" in wanted and "laprox" in self.settings:
            for flag, name in BUDGET_FLAGS.items():
                asked = float(wanted[wanted.index(flag) + 1]) if flag in wanted else None
                has = self.settings["laprox"][name]
                wrong += [f"{flag} {has} in place of {asked}"] if has != asked else []
        return f"the server at {self.url} is not {self.name} ({'; '.join(wrong)})" if wrong else None

    @property
    def names_sessions(self) -> bool:
        return bool(self.settings["enable_session_radix_cache"])

    @property
    def context(self) -> int:
        return int(self.settings["context_length"] or CONTEXT)

    def totals(self) -> dict[str, Any] | None:
        """What LaProx counted since the start; None on a stock server."""
        return self.laprox() if "laprox" in self.settings else None
