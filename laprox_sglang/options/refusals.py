"""Server options that LaProx does not serve. Each stops the start with one line that says why (``check``).

There are two kinds. Some cannot be right: what they do and what a view is contradict each other. Others were
not tried, and nothing is known that speaks against them: whoever wants to may, with ``--laprox-untested``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from laprox_sglang.options.values import ConfigError, shown

if TYPE_CHECKING:
    # Importing it loads torch, which the commands that watch a server do without.
    from laprox_sglang.ports import ModelConfig, ServerArgs

# Served backends by device; the one that SGLang chooses on an A100, H100 or H200 is among them.
ATTENTION_BACKENDS = {"cpu": ("torch_native",), "cuda": ("flashinfer", "triton", "fa3")}
# What the message of a refused backend suggests. SGLang runs fa3 on compute capabilities 8 and 9 only.
BACKENDS_IN_WORDS = {
    "cpu": "torch_native",
    "cuda": "flashinfer or triton (or fa3, on an A100, H100 or H200)",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """``flag`` is refused where ``applies``, because of ``why``: it cannot be right."""

    flag: str
    applies: Callable[[ServerArgs], bool]
    why: str


@dataclass(frozen=True, slots=True)
class Untried(Refusal):
    """``flag`` is refused where ``applies`` unless ``--laprox-untested`` names it.

    Attributes:
        why: what was not tried, or what is known to be worse with it.
        value: what the flag is given, where that is what was not tried.
        instead: what to do to be served.
    """

    value: Callable[[ServerArgs], str] | None = None
    instead: Callable[[ServerArgs], str] | None = None

    @property
    def name(self) -> str:
        """As ``--laprox-untested`` takes it."""
        return self.flag.removeprefix("--")


def given(name: str, *neutral: object) -> Callable[[ServerArgs], bool]:
    """The server argument ``name`` has another value than these (or an empty one)."""
    return lambda args: bool(getattr(args, name)) and getattr(args, name) not in neutral


def above_one(name: str) -> Callable[[ServerArgs], bool]:
    return lambda args: (getattr(args, name) or 1) > 1


OTHER_CACHE = "it manages cached KV by whole tokens and a view would have no part in it"
OTHER_POOL = "LaProx needs its own layout of the KV pool"
CONTEXT_PARALLEL = "the KV of a prompt is spread over ranks, and scores need all of it"
WHOLE_ROWS = "it reads whole rows of slots"
OTHER_QUANTIZED = (
    "of quantized KV only fp8_e4m3 is read: fp8_e5m2 is as large and less exact, and mxfp8 and 4-bit KV keep "
    "scales beside their cells, which packing would have to move along"
)
DRAFTS = "verifying drafts reads and rolls back KV of whole prompts"

REFUSALS = (
    Refusal("--speculative-algorithm", given("speculative_algorithm"), DRAFTS),
    Refusal("--disaggregation-mode", given("disaggregation_mode", "null"), "a view cannot be sent elsewhere"),
    Refusal(
        "--disaggregation-decode-enable-offload-kvcache",
        given("disaggregation_decode_enable_offload_kvcache"),
        "a view cannot be offloaded",
    ),
    Refusal(
        "--hicache-host-memory-mode",
        given("hicache_host_memory_mode", "cache"),
        "host memory would only pass histories on and keep none; use cache",
    ),
    Refusal(
        "--hicache-io-backend",
        given("hicache_io_backend", "kernel"),
        "it copies every layer of every slot by itself, 64 copies a token at 8B; use kernel",
    ),
    Refusal(
        "--hicache-mem-layout",
        given("hicache_mem_layout", "page_first", "layer_first"),
        "its copies take the layers of the KV pool for contiguous; use page_first",
    ),
    Refusal("--enable-lmcache", given("enable_lmcache"), OTHER_CACHE),
    Refusal("--enable-flexkv", given("enable_flexkv"), OTHER_CACHE),
    Refusal("--radix-cache-backend", given("radix_cache_backend", "laprox"), OTHER_CACHE),
    Refusal(
        "--enable-unified-cache-external-linker",
        given("enable_unified_cache_external_linker"),
        OTHER_CACHE,
    ),
    Refusal("--enable-kv-cache-sharding", given("enable_kv_cache_sharding"), OTHER_POOL),
    Refusal("--enable-unified-memory", given("enable_unified_memory"), OTHER_POOL),
    Refusal("--enable-page-major-kv-layout", given("enable_page_major_kv_layout"), OTHER_POOL),
    Refusal("--enable-hisparse", given("enable_hisparse"), OTHER_POOL),
    Refusal("--kv-canary", given("kv_canary", "none"), "it expects every logical column to hold a slot"),
    Refusal(
        "--prefill-only-disable-kv-cache", given("prefill_only_disable_kv_cache"), "there is no KV to prune"
    ),
    Refusal(
        "--enable-streaming-session",
        given("enable_streaming_session"),
        "a session hands its row of slots on to its next turn, and behind a view that row is not exact; "
        "use --enable-session-radix-cache",
    ),
    Refusal(
        "--strip-thinking-cache",
        given("strip_thinking_cache"),
        "of a request that was retracted in its answer it frees slots that the tree holds; answers over "
        "views are never cached",
    ),
    Refusal(
        "--pipeline-parallel-size",
        above_one("pp_size"),
        "a stage holds some of the layers, and LaProx needs all, numbered from 0",
    ),
    Refusal("--decode-context-parallel-size", above_one("dcp_size"), CONTEXT_PARALLEL),
    Refusal("--attention-context-parallel-size", above_one("attn_cp_size"), CONTEXT_PARALLEL),
    Refusal("--enable-prefill-cp", given("enable_prefill_cp"), CONTEXT_PARALLEL),
    Refusal(
        "--enable-two-batch-overlap",
        given("enable_two_batch_overlap"),
        "it splits batches behind the scheduler",
    ),
    Refusal("--enable-pdmux", given("enable_pdmux"), "it runs prefill in parts that are not scored"),
    Refusal(
        "--kv-cache-dtype",
        given("kv_cache_dtype", "auto", "bf16", "bfloat16", "fp16", "float16", "fp8_e4m3"),
        OTHER_QUANTIZED,
    ),
    Refusal(
        "--quantization-param-path",
        given("quantization_param_path"),
        "SGLang divides what it caches by these scales, and no attention backend multiplies with them",
    ),
    Refusal("--page-size", above_one("page_size"), "a view takes single slots; use 1"),
    Refusal(
        "--enable-deterministic-inference",
        given("enable_deterministic_inference"),
        "decoding over a view is not invariant to the batch",
    ),
    Refusal("--rl-on-policy-target", given("rl_on_policy_target"), "decoding over a view is another policy"),
    Refusal("--enable-mixed-chunk", given("enable_mixed_chunk"), "it decodes through the prefill kernel"),
    Refusal("--enable-nvidia-megakernel", given("enable_nvidia_megakernel"), "its decode reads whole rows"),
    Refusal("--dllm-algorithm", given("dllm_algorithm"), "diffusion models read all of the prompt again"),
    Refusal("--is-embedding", given("is_embedding"), "embedding has no decoding"),
    Refusal("--use-ray", given("use_ray"), "its actors load no plugins, so there would be no LaProx in them"),
    Refusal("--encoder-only", given("encoder_only"), "an encoder has no decoding"),
    Refusal(
        "--enable-return-routed-experts",
        given("enable_return_routed_experts"),
        WHOLE_ROWS,
    ),
    Refusal("--enable-return-indexer-topk", given("enable_return_indexer_topk"), WHOLE_ROWS),
)


def other_attention_backend(args: ServerArgs) -> bool:
    return args.attention_backend not in (None, *ATTENTION_BACKENDS[args.device])


def other_decode_graphs(args: ServerArgs) -> bool:
    return args.cuda_graph_config.decode.backend not in ("full", "disabled")


# Of the hierarchical cache. With pages of one token a storage holds every token as an object of its own.
STORAGE = "file"


def other_storage(args: ServerArgs) -> bool:
    return args.hicache_storage_backend not in (None, STORAGE)


# Of models over images, as ``config.json`` names them.
VISION_MODELS = ("Qwen2_5_VLForConditionalGeneration", "Qwen3VLForConditionalGeneration")


def other_multimodal(args: ServerArgs) -> bool:
    from sglang.srt.arg_groups.model_override_base import model_config_of

    model: ModelConfig = model_config_of(args)
    served = model.hf_config.architectures[0] in VISION_MODELS and model.model_impl != "transformers"
    return model.is_multimodal and not served


ATTENTION_BACKEND = Untried(
    "--attention-backend",
    other_attention_backend,
    "its KV reads were not tested",
    value=lambda args: str(args.attention_backend),
    instead=lambda args: f"give --attention-backend {BACKENDS_IN_WORDS[args.device]}",
)
OTHER_MULTIMODAL = Untried(
    "--model-path",
    other_multimodal,
    "of models over pictures, video or audio only Qwen2.5-VL and Qwen3-VL were, in SGLang's own classes",
    value=lambda args: args.model_path,
    instead=lambda args: "serve one of these",
)
OTHER_STORAGE = Untried(
    "--hicache-storage-backend",
    other_storage,
    "no other than file was run, and each token would be an object of its own",
    value=lambda args: str(args.hicache_storage_backend),
    instead=lambda args: f"give {STORAGE}, or none",
)
UNTRIED = (
    ATTENTION_BACKEND,
    OTHER_STORAGE,
    Untried(
        "--tensor-parallel-size",
        lambda args: above_one("tp_size")(args) and given("enable_hierarchical_cache")(args),
        "the host tier was not tried over several ranks, whose copies to the host end at different times",
        instead=lambda args: "leave --enable-hierarchical-cache out",
    ),
    # SGLang resolves --enable-dp-attention into this argument and turns the flag itself off.
    Untried(
        "--attention-data-parallel-size",
        above_one("attn_dp_size"),
        "while one rank makes a view all others wait, and steps without a request were not tested",
    ),
    Untried(
        "--elastic-ep-backend",
        given("elastic_ep_backend", "none"),
        "ranks that leave and join while requests read views were not tested",
    ),
    Untried(
        "--enable-torch-compile",
        given("enable_torch_compile"),
        "decode over views was not compiled by torch, which pads batches",
    ),
    Untried(
        "--enable-lean-attention",
        given("enable_lean_attention"),
        "its decode kernel, for batches without a view, was not tested beside ours",
    ),
    Untried(
        "--enable-mis",
        given("enable_mis"),
        "multi-item scoring, which itself has no decoding, was not tested beside views",
    ),
    Untried(
        "--tokenizer-worker-num",
        above_one("tokenizer_worker_num"),
        "no request was sent to several tokenizer processes",
        instead=lambda args: "use 1",
    ),
    Untried(
        "--grpc-port",
        lambda args: given("grpc_port")(args) and not given("smg_grpc_mode")(args),
        "no request was sent over gRPC",
    ),
    Untried(
        "--smg-grpc-mode",
        given("smg_grpc_mode"),
        "no request was sent over it, and its replies have no place for facts",
    ),
    OTHER_MULTIMODAL,
    Untried(
        "--language-only",
        given("language_only"),
        "pictures that another server has encoded were not tested",
    ),
    Untried(
        "--cuda-graph-backend-decode",
        other_decode_graphs,
        "graphs of batches with a view were not tested with it",
        value=lambda args: args.cuda_graph_config.decode.backend,
        instead=lambda args: "use full",
    ),
)
UNTRIED_NAMES = tuple(untried.name for untried in UNTRIED)

# Environment variables of SGLang that replace what LaProx builds on.
ENVIRONMENT_REFUSALS = {
    "SGLANG_USE_HND_KVCACHE": OTHER_POOL,
    "SGLANG_ENABLE_POST_CAPTURE_KV_SIZING": OTHER_POOL,
    "SGLANG_MOONCAKE_CUSTOM_MEM_POOL": OTHER_POOL,
    "SGLANG_ENABLE_METADATA_GLUE_GRAPH": "its graphs do not tell compressed batches from whole ones",
}
RUST_SERVER = "SGLANG_RUST_SERVER"
OFF = ("", "0", "false", "no", "n", "off")


def check_untested(names: tuple[object, ...]) -> None:
    """
    Raises:
        ConfigError: one of ``names`` is no flag that ``UNTRIED`` refuses.
    """
    cannot = {refusal.flag: refusal.why for refusal in REFUSALS}
    for name in names:
        if name not in UNTRIED_NAMES:
            why = cannot.get(f"--{name}")
            fault = f"cannot be right: {why}" if why else "is no flag that was not tried"
            raise ConfigError(
                f"untested {shown(repr(name))} {fault}; what can be tried is {', '.join(UNTRIED_NAMES)}"
            )


def used_untried(args: ServerArgs) -> tuple[Untried, ...]:
    """What a server with these resolved arguments uses that was not tried."""
    return tuple(untried for untried in UNTRIED if untried.applies(args))


def attached_storage_fault(storage: str, policy: str | None, untested: tuple[str, ...]) -> str | None:
    """Why a storage cannot be attached to the hierarchical cache of a server that runs; None if it can.

    Args:
        storage: as of ``--hicache-storage-backend``.
        policy: as of ``--hicache-write-policy``, if it is to be changed.
    """
    if policy is not None:
        return "laprox: the write policy stays that of the start: leave hicache_write_policy out"
    if storage != STORAGE and OTHER_STORAGE.name not in untested:
        return (
            f"laprox: storage {shown(storage)} was not tried with LaProx: {OTHER_STORAGE.why}; attach "
            f"{STORAGE}, or start the server with --laprox-untested {OTHER_STORAGE.name}"
        )
    return None
