"""Server options that LaProx does not serve. Each stops the start with one line that says why."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from laprox_sglang.options.values import ConfigError
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
    """``flag`` is refused where ``applies``, because of ``why``."""

    flag: str
    applies: Callable[[ServerArgs], bool]
    why: str


def given(name: str, *neutral: object) -> Callable[[ServerArgs], bool]:
    """The server argument ``name`` has another value than these (or an empty one)."""
    return lambda args: bool(getattr(args, name)) and getattr(args, name) not in neutral


def above_one(name: str) -> Callable[[ServerArgs], bool]:
    return lambda args: (getattr(args, name) or 1) > 1


OTHER_CACHE = "it manages cached KV by whole tokens and a view would have no part in it"
OTHER_POOL = "LaProx needs its own layout of the KV pool"
ONE_RANK = "cells compete over the heads of a layer, or over all layers, which one rank must hold"
NO_PLUGINS = "its processes load no plugins, so options of requests would go unchecked"
DRAFTS = "verifying drafts reads and rolls back KV of whole prompts"

REFUSALS = (
    Refusal("--speculative-algorithm", given("speculative_algorithm"), DRAFTS),
    Refusal("--disaggregation-mode", given("disaggregation_mode", "null"), "a view cannot be sent elsewhere"),
    Refusal(
        "--disaggregation-decode-enable-offload-kvcache",
        given("disaggregation_decode_enable_offload_kvcache"),
        "a view cannot be offloaded",
    ),
    Refusal("--enable-hierarchical-cache", given("enable_hierarchical_cache"), OTHER_CACHE),
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
    Refusal("--enable-streaming-session", given("enable_streaming_session"), "a session keeps whole KV"),
    Refusal("--enable-session-radix-cache", given("enable_session_radix_cache"), "a session keeps whole KV"),
    Refusal("--strip-thinking-cache", given("strip_thinking_cache"), "it frees output by logical column"),
    Refusal("--tensor-parallel-size", above_one("tp_size"), ONE_RANK),
    Refusal("--pipeline-parallel-size", above_one("pp_size"), ONE_RANK),
    # SGLang resolves --enable-dp-attention into this argument and turns the flag itself off.
    Refusal("--attention-data-parallel-size", above_one("attn_dp_size"), ONE_RANK),
    Refusal("--decode-context-parallel-size", above_one("dcp_size"), ONE_RANK),
    Refusal("--attention-context-parallel-size", above_one("attn_cp_size"), ONE_RANK),
    Refusal("--enable-prefill-cp", given("enable_prefill_cp"), ONE_RANK),
    Refusal(
        "--enable-two-batch-overlap",
        given("enable_two_batch_overlap"),
        "it splits batches behind the scheduler",
    ),
    Refusal("--enable-pdmux", given("enable_pdmux"), "it runs prefill in parts that are not scored"),
    Refusal("--elastic-ep-backend", given("elastic_ep_backend", "none"), "ranks come and go with their KV"),
    Refusal("--enable-lora", given("enable_lora"), "an adapter changes W_O, which scores are made of"),
    Refusal("--lora-paths", given("lora_paths"), "an adapter changes W_O, which scores are made of"),
    Refusal(
        "--kv-cache-dtype",
        given("kv_cache_dtype", "auto", "bf16", "bfloat16", "fp16", "float16"),
        "quantized KV is not scored yet; use auto",
    ),
    Refusal("--page-size", above_one("page_size"), "a view takes single slots; use 1"),
    Refusal(
        "--enable-deterministic-inference",
        given("enable_deterministic_inference"),
        "decoding over a view is not invariant to the batch",
    ),
    Refusal("--rl-on-policy-target", given("rl_on_policy_target"), "decoding over a view is another policy"),
    Refusal("--enable-mixed-chunk", given("enable_mixed_chunk"), "it decodes through the prefill kernel"),
    Refusal("--enable-torch-compile", given("enable_torch_compile"), "compiled decode steps pad batches"),
    Refusal("--enable-lean-attention", given("enable_lean_attention"), "its decode kernel reads whole rows"),
    Refusal("--enable-nvidia-megakernel", given("enable_nvidia_megakernel"), "its decode reads whole rows"),
    Refusal("--dllm-algorithm", given("dllm_algorithm"), "diffusion models read all of the prompt again"),
    Refusal("--enable-mis", given("enable_mis"), "multi-item scoring has no decoding"),
    Refusal("--is-embedding", given("is_embedding"), "embedding has no decoding"),
    Refusal("--tokenizer-worker-num", above_one("tokenizer_worker_num"), NO_PLUGINS),
    Refusal("--smg-grpc-mode", given("smg_grpc_mode"), NO_PLUGINS),
    Refusal("--grpc-port", given("grpc_port"), "options of requests were not tested over gRPC"),
    Refusal("--use-ray", given("use_ray"), NO_PLUGINS),
    Refusal("--encoder-only", given("encoder_only"), "an encoder has no decoding"),
    Refusal(
        "--enable-return-routed-experts",
        given("enable_return_routed_experts"),
        "it reads whole rows of slots",
    ),
    Refusal(
        "--enable-return-indexer-topk", given("enable_return_indexer_topk"), "it reads whole rows of slots"
    ),
)

# Environment variables of SGLang that replace what LaProx builds on.
ENVIRONMENT_REFUSALS = {
    "SGLANG_RUST_SERVER": NO_PLUGINS,
    "SGLANG_USE_HND_KVCACHE": OTHER_POOL,
    "SGLANG_ENABLE_POST_CAPTURE_KV_SIZING": OTHER_POOL,
    "SGLANG_MOONCAKE_CUSTOM_MEM_POOL": OTHER_POOL,
    "SGLANG_ENABLE_METADATA_GLUE_GRAPH": "its graphs do not tell compressed batches from whole ones",
}
OFF = ("", "0", "false", "no", "n", "off")


def refuse(flag: str, why: str) -> ConfigError:
    return ConfigError(f"{flag} does not go together with --enable-laprox: {why}")


def check_arguments(args: ServerArgs, environ: Mapping[str, str] = os.environ) -> None:
    """Checks resolved server arguments.

    Args:
        args: a resolved view of SGLang's ``ServerArgs``; the record itself holds what was typed.

    Raises:
        ConfigError: names the first flag that is refused, and why.
    """
    if args.device not in ATTENTION_BACKENDS:
        raise refuse(f"--device {args.device}", f"its kernels serve {', '.join(ATTENTION_BACKENDS)} only")
    # Checked first: SGLang may have set other arguments, such as a page size, because of the backend.
    check_attention_backends(args)
    for refusal in REFUSALS:
        if refusal.applies(args):
            raise refuse(refusal.flag, refusal.why)
    for name, why in ENVIRONMENT_REFUSALS.items():
        if environ.get(name, "").lower() not in OFF:
            raise refuse(name, why)
    graphs = args.cuda_graph_config
    if graphs.prefill.backend == "full":
        raise refuse("--cuda-graph-backend-prefill full", "its graphs hide the queries; use breakable")
    if graphs.decode.backend not in ("full", "disabled"):
        flag = f"--cuda-graph-backend-decode {graphs.decode.backend}"
        raise refuse(flag, "graphs of compressed batches were not tested with it; use full")


def check_attention_backends(args: ServerArgs) -> None:
    for phase in ("", "prefill_", "decode_"):
        backend = getattr(args, f"{phase}attention_backend")
        if backend is None:
            continue
        flag = f"--{phase.replace('_', '-')}attention-backend {backend}"
        if backend not in ATTENTION_BACKENDS[args.device]:
            choice = BACKENDS_IN_WORDS[args.device]
            raise refuse(flag, f"its KV reads were not tested; give --attention-backend {choice}")
        if backend != args.attention_backend:
            raise refuse(
                flag, f"prefill and decode must share one backend; give --attention-backend {backend} alone"
            )


def check_model(config: ModelConfig) -> None:
    """Checks a model's architecture, before its weights are loaded.

    Args:
        config: SGLang's ``ModelConfig``.

    Raises:
        ConfigError: names what the model has that is not served.
    """
    from sglang.srt.configs.hybrid_arch import mambaish_config
    from sglang.srt.configs.model_config import AttentionArch

    faults = {
        "multi-head latent attention": config.attention_arch != AttentionArch.MHA,
        "sliding-window layers": config.is_hybrid_swa,
        "linear-attention or state-space layers": mambaish_config(config) is not None,
        "cross attention": config.is_encoder_decoder,
        "image or audio input": config.is_multimodal,
        "chunked local attention": bool(config.attention_chunk_size),
        "attention sinks": bool(config.has_attention_sinks),
        "no decoding": not config.is_generation,
    }
    for fault, present in faults.items():
        if present:
            raise refuse(f"--model-path {config.model_path}", f"the model has {fault}, which is not scored")
