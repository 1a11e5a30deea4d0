"""Every combination that is not served is refused, in one line that names a flag SGLang has.

SGLang's record of arguments holds what was typed, for ever; what it decided is in the resolved view. A
refusal that reads the record never fires, so every one is tried here on a view that SGLang resolved itself.
"""

import argparse
import copy
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.arg_groups.model_override_base import model_config_of
from sglang.srt.arg_groups.overrides import declare_resolution, resolved_view
from sglang.srt.configs.model_config import AttentionArch
from sglang.srt.environ import envs
from sglang.srt.server_args import ServerArgs

from laprox_patches.arguments import check_served
from laprox_patches.model.attention_backend import try_untested
from laprox_patches.tokenizer.request import check_options
from laprox_sglang.options.check import check_arguments, check_model, faults
from laprox_sglang.options.refusals import (
    ATTENTION_BACKENDS,
    ENVIRONMENT_REFUSALS,
    OFF,
    REFUSALS,
    UNTRIED,
    UNTRIED_NAMES,
    Refusal,
    attached_storage_fault,
    used_untried,
)
from laprox_sglang.options.server import Config
from laprox_sglang.options.values import ConfigError
from laprox_tools.needle import MODEL_PATH

CLEAN = {
    "model_path": str(MODEL_PATH),
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "dtype": "float32",
}
TRITON = {"attention_backend": "triton"}
# Configurations without weights.
MODELS = Path(__file__).with_name("models")
TWO_RANKS = {"tp_size": 2, "attn_cp_size": 2}
# By refused flag: what makes SGLang resolve it on a CPU, where the flag alone with any value does not.
RESOLVES_WITH: dict[str, dict[str, Any]] = {
    "--speculative-algorithm": {"speculative_algorithm": "NGRAM"},
    "--disaggregation-decode-enable-offload-kvcache": {
        "disaggregation_mode": "decode",
        "hicache_storage_backend": "file",
    },
    "--enable-unified-memory": TRITON,
    "--enable-page-major-kv-layout": {"enable_unified_memory": True} | TRITON,
    "--prefill-only-disable-kv-cache": {
        "is_embedding": True,
        "chunked_prefill_size": -1,
        "disable_radix_cache": True,
        "attention_backend": "fa3",
    },
    "--tensor-parallel-size": {"tp_size": 2, "enable_hierarchical_cache": True},
    "--attention-data-parallel-size": {"tp_size": 2},
    "--attention-context-parallel-size": {"tp_size": 2},
    "--enable-prefill-cp": {"cp_strategy": "zigzag"} | TWO_RANKS,
    "--kv-cache-dtype": {"kv_cache_dtype": "fp8_e5m2"},
    "--enable-deterministic-inference": TRITON,
    "--rl-on-policy-target": TRITON,
    "--enable-mis": {"attention_backend": "flashinfer"},
    "--attention-backend": TRITON,
    "--model-path": {"model_path": str(MODELS / "llava")},
    "--language-only": {"model_path": str(MODELS / "qwen2_5_vl")},
}
# By refused flag: why SGLang itself does not resolve it here. These are declared, as SGLang declares what
# it resolves.
NEVER_RESOLVES = {
    "--enable-kv-cache-sharding": "asks for a PD prefill worker on fa3 with context parallelism",
    "--enable-nvidia-megakernel": "asks for a package and a Blackwell GPU",
    "--dllm-algorithm": "asks for a diffusion model",
    "--encoder-only": "asks for a model with an image encoder",
}
# Graphs are off without a GPU, whatever is given: declared where they are tried.
GRAPHS = "--cuda-graph-backend-decode"
BOTH_KINDS = (*REFUSALS, *UNTRIED)
# Off after resolution; what it asked for is in another argument.
RESOLVED_AWAY = {"enable_dp_attention": "--attention-data-parallel-size"}

# What was found not to be servable when SGLang was read, by attribute.
NOT_SERVED = """
speculative_algorithm disaggregation_mode disaggregation_decode_enable_offload_kvcache
enable_lmcache enable_flexkv radix_cache_backend
hicache_host_memory_mode hicache_io_backend hicache_mem_layout hicache_storage_backend
enable_unified_memory enable_page_major_kv_layout enable_hisparse kv_canary prefill_only_disable_kv_cache
enable_streaming_session pp_size attn_dp_size dcp_size attn_cp_size
enable_prefill_cp enable_two_batch_overlap enable_pdmux elastic_ep_backend
quantization_param_path
kv_cache_dtype page_size enable_deterministic_inference rl_on_policy_target enable_mixed_chunk
dllm_algorithm enable_mis is_embedding enable_return_routed_experts enable_kv_cache_sharding
enable_unified_cache_external_linker enable_lean_attention enable_nvidia_megakernel
""".split()
NEUTRAL = {"none", "null", "auto", "bf16", "bfloat16", "fp8_e4m3"}


def flags() -> dict[str, argparse.Action]:
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    return {flag: action for action in parser._actions for flag in action.option_strings}


FLAGS = flags()


def record(declared: dict[str, Any] | None = None, **given: Any) -> ServerArgs:
    """Arguments as SGLang resolves them; ``declared`` stands for what it would not resolve on a CPU."""
    arguments = ServerArgs(**(CLEAN | given))
    arguments.resolve_once()
    if declared:
        declare_resolution(arguments, "test", **declared)
    return arguments


def resolved(declared: dict[str, Any] | None = None, **given: Any) -> Any:
    return resolved_view(record(declared, **given))


@pytest.fixture(scope="module")
def clean() -> Any:
    return resolved()


@pytest.fixture(scope="module")
def model() -> Any:
    return model_config_of(record())


def changed(model: Any, **attributes: Any) -> Any:
    other = copy.copy(model)
    for name, value in attributes.items():
        assert hasattr(other, name), f"{name} is no attribute of it"
        setattr(other, name, value)
    return other


def value_of(action: argparse.Action) -> Any:
    """A value of the flag that is not its neutral one."""
    if action.nargs == 0:
        return True
    if action.choices:
        return next(choice for choice in reversed(list(action.choices)) if choice not in NEUTRAL)
    return 2 if action.type is int else "something"


def refused(arguments: Any, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as error:
        check_arguments(arguments, environ or {})
    message = str(error.value)
    assert "\n" not in message and "--enable-laprox" in message
    assert len(message.split(": ", 1)[1]) > 10, "it does not say why"
    return message


def test_clean_arguments_pass(clean, model):
    check_arguments(clean, {})
    check_arguments(resolved(radix_cache_backend="laprox", disable_radix_cache=True), {})
    check_model(model)


def test_everything_that_is_not_served_has_a_refusal():
    refused_by_attribute = {FLAGS[refusal.flag].dest for refusal in BOTH_KINDS}
    assert set(NOT_SERVED) <= refused_by_attribute
    assert len(refused_by_attribute) == len(BOTH_KINDS)
    assert RESOLVES_WITH.keys() | NEVER_RESOLVES.keys() <= {refusal.flag for refusal in BOTH_KINDS}


def using(refusal: Refusal, clean: Any) -> Any:
    """Resolved arguments with what is refused, and what SGLang wants beside it."""
    assert refusal.flag in FLAGS, f"SGLang has no flag {refusal.flag}"
    action = FLAGS[refusal.flag]
    value = {action.dest: value_of(action)}
    if refusal.flag == GRAPHS:
        graphs = copy.deepcopy(clean.cuda_graph_config)
        graphs.decode.backend = "breakable"
        return resolved(declared={"cuda_graph_config": graphs})
    if refusal.flag in NEVER_RESOLVES:
        return resolved(declared=value)
    return resolved(**value | RESOLVES_WITH.get(refusal.flag, {}))


@pytest.mark.parametrize("refusal", BOTH_KINDS, ids=lambda refusal: refusal.flag)
def test_refusal_names_a_real_flag_and_fires_on_what_it_resolves_to(refusal, clean):
    assert not refusal.applies(clean)
    arguments = using(refusal, clean)
    assert refusal.applies(arguments)
    message = refused(arguments)
    # What it needs beside it may be refused first.
    assert message.startswith(refusal.flag + " ") or refusal.flag in RESOLVES_WITH


@pytest.mark.parametrize("untried", UNTRIED, ids=lambda untried: untried.name)
def test_what_was_not_tried_can_be(untried, clean, model, caplog):
    arguments = using(untried, clean)
    # As the message says, all at once: SGLang may ask for something else that was not tried.
    message = next(str(fault) for fault in faults(arguments, {}) if str(fault).startswith(untried.flag))
    assert " was not tried with --enable-laprox: " in message and untried.why in message
    names = message.partition("; ")[2].partition("or try it: --laprox-untested ")[2].split(",")
    assert names == [other.name for other in used_untried(arguments)] and untried.name in names
    check_arguments(arguments, {}, names)
    # Where a chat's instructions are, not every front door can tell.
    config = Config(untested=[f"--{name}" for name in names], keep_prefix=0)
    check_served(config, arguments, model)
    # One of them is not enough, nor is another.
    others = [name for name in UNTRIED_NAMES if name != untried.name]
    with pytest.raises(ConfigError, match=f"^{untried.flag} "):
        check_arguments(arguments, {}, others)
    check_arguments(clean, {}, UNTRIED_NAMES)
    assert try_untested(config, SimpleNamespace(server_args=arguments)) == tuple(names)
    [warning] = [record for record in caplog.records if f"not tried with {untried.flag}:" in record.message]
    assert warning.levelname == "WARNING" and untried.why in warning.message


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.flag)
def test_what_cannot_be_right_cannot_be_tried(refusal):
    name = refusal.flag.removeprefix("--")
    with pytest.raises(ConfigError) as error:
        Config(untested=(name,))
    assert f"untested '{name}' cannot be right: {refusal.why}" in str(error.value)


def test_whoever_tries_what_is_not_used_is_told(clean, caplog):
    caplog.set_level("INFO")
    config = Config(untested=("enable-torch-compile", "grpc-port"))
    assert try_untested(config, SimpleNamespace(server_args=clean)) == ()
    [record] = caplog.records
    assert (
        record.message.endswith("does not use: enable-torch-compile, grpc-port")
        and record.levelname == "INFO"
    )


def test_nobody_is_sent_to_try_what_would_be_refused_next():
    """trtllm_mha brings pages of more than one token."""
    declared = {"device": "cuda", "attention_backend": "trtllm_mha", "page_size": 64}
    found = [str(fault) for fault in faults(resolved(declared=declared), {})]
    assert [fault.split()[0] for fault in found] == ["--attention-backend", "--page-size"]
    assert "give --attention-backend flashinfer or triton" in found[0] and "try" not in found[0][80:]


@pytest.mark.parametrize("flag", NEVER_RESOLVES)
def test_what_is_declared_here_is_refused_by_sglang_itself(flag):
    action = FLAGS[flag]
    with pytest.raises((ValueError, RuntimeError, AssertionError)):
        record(**{action.dest: value_of(action)})


@pytest.mark.parametrize("name", RESOLVED_AWAY)
def test_what_is_resolved_away_is_refused_by_what_it_asked_for(name):
    arguments = resolved(tp_size=2, dp_size=2, **{name: True})
    assert not getattr(arguments, name)
    by_flag = {refusal.flag: refusal for refusal in BOTH_KINDS}
    assert by_flag[RESOLVED_AWAY[name]].applies(arguments)
    refused(arguments)


@pytest.mark.parametrize(
    ("name", "given", "served"),
    [
        ("qwen2_5_vl", {}, True),
        ("qwen2_5_vl", {"model_impl": "transformers"}, False),
        ("llava", {}, False),
        # Whoever switches pictures off has a model over text.
        ("llava", {"enable_multimodal": False}, True),
    ],
)
def test_models_over_pictures_are_served_that_were_tried(name, given, served):
    path = str(MODELS / name)
    arguments = resolved(model_path=path, **given)
    check_model(model_config_of(record(model_path=path, **given)))
    if served:
        check_arguments(arguments, {})
    else:
        assert refused(arguments).startswith(f"--model-path {path} was not tried")


@pytest.mark.parametrize("size", [1, None])
def test_sizes_of_one_or_unset_pass(size):
    sizes = {"pp_size": 1, "dcp_size": 1, "attn_cp_size": 1, "page_size": size}
    check_arguments(resolved(**sizes), {})


def test_tensor_parallelism_is_served():
    check_arguments(resolved(tp_size=2), {})


@pytest.mark.parametrize(
    ("name", "value"),
    [("kv_cache_dtype", "fp8_e4m3"), ("kv_cache_dtype", "bfloat16"), ("kv_cache_dtype", "bf16"),
     ("kv_canary", "none"),
     ("elastic_ep_backend", "none")],
)  # fmt: skip
def test_neutral_values_pass(name, value):
    check_arguments(resolved(**{name: value}), {})


HOST_TIER = {"enable_hierarchical_cache": True}


@pytest.mark.parametrize(
    "more",
    [{}, {"hicache_mem_layout": "layer_first"}, {"hicache_write_policy": "write_through_selective"},
     {"hicache_write_policy": "write_back"},
     {"hicache_storage_backend": "file"}, {"hicache_size": 4}],
    ids=str,
)  # fmt: skip
def test_a_host_tier_is_served(more):
    check_arguments(resolved(**HOST_TIER | more), {})


@pytest.mark.parametrize(("given", "flags"), [
    ({"hicache_mem_layout": "page_first_direct"}, ["--hicache-io-backend", "--hicache-mem-layout"]),
    ({"hicache_io_backend": "direct"}, ["--hicache-io-backend", "--hicache-mem-layout"]),
    ({"hicache_mem_layout": "page_head"}, ["--hicache-mem-layout"]),
])  # fmt: skip
def test_a_layout_brings_its_copies_along(given, flags):
    """SGLang changes the one with the other, and says so in a warning."""
    found = [str(fault) for fault in faults(resolved(**HOST_TIER | given), {})]
    assert [fault.split()[0] for fault in found] == flags


@pytest.mark.parametrize(("storage", "policy", "untested", "fault"), [
    ("file", None, (), None),
    ("file", "write_back", (), "the write policy stays that of the start"),
    ("mooncake", None, (), "storage mooncake was not tried with LaProx: "),
    ("mooncake", None, ("hicache-storage-backend",), None),
])  # fmt: skip
def test_a_storage_is_refused_at_run_time_too(storage, policy, untested, fault):
    found = attached_storage_fault(storage, policy, untested)
    assert (found is None) == (fault is None) and (fault is None or fault in found)


# These ask for a GPU.
UNRESOLVED_CACHES = {"mxfp8", "nvfp4", "fp4_mx_block16"}
QUANTIZED_CACHES = set(FLAGS["--kv-cache-dtype"].choices) - NEUTRAL - {"fp16", "float16"}


@pytest.mark.parametrize("dtype", sorted(QUANTIZED_CACHES | {"fp4_e2m1"}))
def test_every_other_quantized_cache_is_refused(dtype):
    given = {"kv_cache_dtype": dtype}
    arguments = resolved(declared=given) if dtype in UNRESOLVED_CACHES else resolved(**given)
    assert refused(arguments).startswith("--kv-cache-dtype ")


@pytest.mark.parametrize("name", ENVIRONMENT_REFUSALS)
def test_environment_variable_is_refused_where_it_is_on(name, clean):
    assert hasattr(envs, name), f"SGLang does not read {name}"
    for value in ("1", "true", "True", "YES", "MOONCAKE"):
        assert refused(clean, {name: value}).startswith(name + " ")
    for value in OFF:
        check_arguments(clean, {name: value})
        check_arguments(clean, {name: value.upper()})


def test_the_graph_of_metadata_is_among_the_refused_variables():
    assert "SGLANG_ENABLE_METADATA_GLUE_GRAPH" in ENVIRONMENT_REFUSALS


# The last two do not resolve on a CPU.
@pytest.mark.parametrize("device", ["xpu", "npu", None])
def test_device_is_refused(device):
    arguments = resolved(device="xpu") if device == "xpu" else resolved(declared={"device": device})
    assert refused(arguments).startswith("--device ")
    assert "--device" in FLAGS


@pytest.mark.parametrize(
    "name", ["attention_backend", "prefill_attention_backend", "decode_attention_backend"]
)
@pytest.mark.parametrize("backend", ["triton", "flashinfer", "fa3", "trtllm_mha", "intel_amx"])
def test_attention_backend_is_refused(name, backend):
    flag = "--" + name.replace("_", "-")
    assert backend in FLAGS[flag].choices
    # SGLang asks for a GPU of a kind; and takes intel_amx for torch_native where there is no AMX.
    unresolved = backend == "trtllm_mha" or (name, backend) == ("attention_backend", "intel_amx")
    given = {name: backend}
    message = refused(resolved(declared=given) if unresolved else resolved(**given))
    assert message.startswith(f"{flag} {backend} ") and "torch_native" in message


@pytest.mark.parametrize("backend", ATTENTION_BACKENDS["cuda"])
def test_a_gpu_is_served_with_its_backends_and_no_other(backend):
    check_arguments(resolved(device="cuda", attention_backend=backend), {})
    message = refused(resolved(device="cuda", attention_backend="torch_native"))
    assert message.startswith("--attention-backend torch_native ") and backend in message
    message = refused(resolved(declared={"device": "cuda", "attention_backend": "trtllm_mha"}))
    assert message.startswith("--attention-backend trtllm_mha ")
    if backend != "triton":
        mixed = {"device": "cuda", "attention_backend": backend, "decode_attention_backend": "triton"}
        assert refused(resolved(**mixed)).startswith("--decode-attention-backend triton ")


@pytest.mark.parametrize(("phase", "backend"), [("prefill", "full"), ("decode", "breakable")])
def test_graphs_that_hide_queries_or_were_not_tested_are_refused(phase, backend, clean):
    # Declared: without a GPU graphs are off, whatever is given.
    graphs = copy.deepcopy(clean.cuda_graph_config)
    graphs[phase].backend = backend
    flag = f"--cuda-graph-backend-{phase}"
    message = refused(resolved(declared={"cuda_graph_config": graphs}))
    assert message.startswith(f"{flag} {backend} ")
    assert backend in FLAGS[flag].choices


def test_everything_is_refused_through_the_check_of_a_start(model):
    check_served(Config(), resolved(), model)
    for given, flag in [
        ({"enable_mixed_chunk": True}, "--enable-mixed-chunk"),
        ({"page_size": 2}, "--page-size"),
    ]:
        with pytest.raises(ConfigError, match=flag):
            check_served(Config(), resolved(**given), model)
    with pytest.raises(ConfigError, match="--laprox-window 999 is above"):
        check_served(
            Config(window=999, min_tokens=2000), resolved(declared={"device": "cuda"} | TRITON), model
        )
    elastic = Config(budget=0.1, budget_max=0.3)
    check_served(elastic, resolved(), model)
    for given, flag in [
        ({"disable_radix_cache": True}, "--disable-radix-cache"),
        ({"tp_size": 2}, "--tensor-"),
    ]:
        check_served(Config(budget=0.1, budget_max=0.1), resolved(**given), model)
        with pytest.raises(ConfigError, match=f"^{flag}.* does not go together with --laprox-budget-max: no"):
            check_served(elastic, resolved(**given), model)
    preferred = {"custom_params": {"laprox": {"budget": 0.9}}}
    with pytest.raises(ConfigError, match=r"budget 0\.9 is above"):
        check_served(Config(budget=0.2), resolved(preferred_sampling_params=preferred), model)


@pytest.mark.parametrize(
    ("attributes", "fault"),
    [
        ({"attention_arch": AttentionArch.MLA}, "latent attention"),
        ({"is_hybrid_swa": True}, "sliding-window"),
        ({"is_encoder_decoder": True}, "cross attention"),
        ({"attention_chunk_size": 8192}, "chunked local attention"),
        ({"has_attention_sinks": True}, "attention sinks"),
        ({"is_generation": False}, "no decoding"),
    ],
)
def test_model_is_refused(attributes, fault, model):
    with pytest.raises(ConfigError) as error:
        check_model(changed(model, **attributes))
    message = str(error.value)
    assert fault in message and "\n" not in message
    assert re.match(r"--model-path \S+ does not go together with --enable-laprox: ", message)


def test_state_space_model_is_refused(model, monkeypatch):
    monkeypatch.setattr("sglang.srt.configs.hybrid_arch.mambaish_config", lambda config: object())
    with pytest.raises(ConfigError, match="state-space"):
        check_model(model)


@pytest.mark.parametrize(
    ("request_", "fault"),
    [
        ({"sampling_params": {"beam_width": 2}}, "beam_width"),
        ({"session_params": {"id": "x"}}, "session_params"),
        ({"video_data": ["x"]}, "video_data: with --enable-laprox only pictures were tried"),
        ({"audio_data": "x"}, "--laprox-untested model-path"),
        ({"sampling_params": {"custom_params": {"laprox": {"budget": 7.5}}}}, "budget"),
    ],
    ids=["beams", "session", "video", "audio", "budget"],
)
def test_a_request_is_refused_before_there_is_one_to_schedule(request_, fault):
    given = {"sampling_params": None, "session_params": None, "input_ids": None} | request_
    manager = SimpleNamespace(
        server_args=SimpleNamespace(_laprox=Config()), preferred_sampling_params=None, context_len=1000
    )
    with pytest.raises(ConfigError) as error:
        check_options(None, manager, SimpleNamespace(**given), [1])
    assert fault in str(error.value) and "\n" not in str(error.value)
    # A stock server is none of our business, and neither is one beam.
    check_options(None, SimpleNamespace(server_args=SimpleNamespace()), SimpleNamespace(**given), [1])
    for beams in (None, 1):
        plain = SimpleNamespace(
            sampling_params={"beam_width": beams}, session_params=None, text=None, input_ids=[1]
        )
        check_options(None, manager, plain, [1])


def test_video_is_tried_where_other_models_over_pictures_are():
    manager = SimpleNamespace(
        server_args=SimpleNamespace(_laprox=Config(untested=["model-path"])), preferred_sampling_params=None
    )
    request = SimpleNamespace(sampling_params={}, text="", input_ids=None, video_data=["x"])
    check_options(None, manager, request, [1])


def test_beams_of_a_server_s_own_parameters_are_refused():
    manager = SimpleNamespace(
        server_args=SimpleNamespace(_laprox=Config()),
        preferred_sampling_params={"beam_width": 4},
        context_len=1000,
    )
    with pytest.raises(ConfigError, match="beam_width"):
        check_options(None, manager, SimpleNamespace(sampling_params={}), [1])
