"""Every combination that is not served is refused, in one line that names a flag SGLang has."""

import argparse
import copy
import re

import pytest
from sglang.srt.configs.model_config import AttentionArch
from sglang.srt.environ import envs
from sglang.srt.server_args import ServerArgs

from laprox_sglang.config import ConfigError
from laprox_sglang.needle import MODEL_PATH
from laprox_sglang.refusals import ENVIRONMENT_REFUSALS, OFF, REFUSALS, check_arguments, check_model

# What sglang-0.5.17.md, section J, says cannot be served, by attribute of ServerArgs.
NOT_SERVED = """
speculative_algorithm disaggregation_mode disaggregation_decode_enable_offload_kvcache
enable_hierarchical_cache enable_lmcache enable_flexkv radix_cache_backend kv_events_config
enable_unified_memory enable_page_major_kv_layout enable_hisparse kv_canary prefill_only_disable_kv_cache
enable_streaming_session enable_session_radix_cache tp_size pp_size enable_dp_attention dcp_size attn_cp_size
enable_prefill_cp enable_two_batch_overlap enable_pdmux elastic_ep_backend enable_lora lora_paths
kv_cache_dtype page_size enable_deterministic_inference rl_on_policy_target enable_mixed_chunk
dllm_algorithm enable_mis is_embedding enable_return_routed_experts
""".split()
NEUTRAL = {"none", "null", "auto", "bf16", "bfloat16"}


def flags() -> dict[str, argparse.Action]:
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    return {flag: action for action in parser._actions for flag in action.option_strings}


FLAGS = flags()


@pytest.fixture(scope="module")
def clean() -> ServerArgs:
    return ServerArgs(
        model_path=str(MODEL_PATH),
        device="cpu",
        attention_backend="torch_native",
        sampling_backend="pytorch",
        grammar_backend="none",
        dtype="float32",
    )


def changed(arguments, **attributes):
    """A copy with other values, past SGLang's guard of resolved arguments."""
    other = copy.copy(arguments)
    for name, value in attributes.items():
        assert hasattr(other, name), f"{name} is no attribute of it"
        object.__setattr__(other, name, value)
    return other


def value_of(action: argparse.Action):
    """A value of the flag that is not its neutral one."""
    if action.nargs == 0:
        return True
    if action.choices:
        return next(choice for choice in reversed(list(action.choices)) if choice not in NEUTRAL)
    return 2 if action.type is int else "something"


def refused(arguments, environ=None) -> str:
    with pytest.raises(ConfigError) as error:
        check_arguments(arguments, {} if environ is None else environ)
    message = str(error.value)
    assert "\n" not in message and "--enable-laprox" in message
    assert len(message.split(": ", 1)[1]) > 10, "it does not say why"
    return message


def test_clean_arguments_pass(clean):
    check_arguments(clean, {})
    check_arguments(changed(clean, radix_cache_backend="laprox", disable_radix_cache=True), {})
    check_model(clean.get_model_config())


def test_everything_that_is_not_served_has_a_refusal():
    refused_by_attribute = {FLAGS[refusal.flag].dest for refusal in REFUSALS}
    assert set(NOT_SERVED) <= refused_by_attribute
    assert len(refused_by_attribute) == len(REFUSALS)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.flag)
def test_refusal_names_a_real_flag_and_fires_on_what_it_sets(refusal, clean):
    assert refusal.flag in FLAGS, f"SGLang has no flag {refusal.flag}"
    assert not refusal.applies(clean)
    action = FLAGS[refusal.flag]
    message = refused(changed(clean, **{action.dest: value_of(action)}))
    assert message.startswith(refusal.flag + " ")


@pytest.mark.parametrize("name", ["tp_size", "pp_size", "dcp_size", "attn_cp_size", "page_size"])
def test_sizes_of_one_or_unset_pass(name, clean):
    for value in (1, None):
        check_arguments(changed(clean, **{name: value}), {})


@pytest.mark.parametrize(
    ("name", "value"),
    [("kv_cache_dtype", "bfloat16"), ("kv_cache_dtype", "bf16"), ("kv_canary", "none"),
     ("elastic_ep_backend", "none"), ("enable_lora", False), ("lora_paths", [])],
)  # fmt: skip
def test_neutral_values_pass(name, value, clean):
    check_arguments(changed(clean, **{name: value}), {})


@pytest.mark.parametrize("dtype", ["fp8_e4m3", "fp8_e5m2", "mxfp8", "nvfp4", "fp4_e2m1"])
def test_every_quantized_cache_is_refused(dtype, clean):
    assert dtype in FLAGS["--kv-cache-dtype"].choices
    assert refused(changed(clean, kv_cache_dtype=dtype)).startswith("--kv-cache-dtype ")


@pytest.mark.parametrize("name", ENVIRONMENT_REFUSALS)
def test_environment_variable_is_refused_where_it_is_on(name, clean):
    assert hasattr(envs, name), f"SGLang does not read {name}"
    for value in ("1", "true", "True", "YES", "MOONCAKE"):
        assert refused(clean, {name: value}).startswith(name + " ")
    for value in OFF:
        check_arguments(clean, {name: value})
        check_arguments(clean, {name: value.upper()})


@pytest.mark.parametrize("device", ["xpu", "npu", None])
def test_device_is_refused(device, clean):
    assert refused(changed(clean, device=device)).startswith("--device ")
    assert "--device" in FLAGS


@pytest.mark.parametrize(
    "name", ["attention_backend", "prefill_attention_backend", "decode_attention_backend"]
)
@pytest.mark.parametrize("backend", ["triton", "flashinfer", "fa3", "trtllm_mha", "intel_amx"])
def test_attention_backend_is_refused(name, backend, clean):
    flag = "--" + name.replace("_", "-")
    assert backend in FLAGS[flag].choices
    message = refused(changed(clean, **{name: backend}))
    assert message.startswith(f"{flag} {backend} ") and "torch_native" in message


@pytest.mark.parametrize("backend", ["flashinfer", "triton"])
def test_a_gpu_is_served_with_its_backends_and_no_other(backend, clean):
    check_arguments(changed(clean, device="cuda", attention_backend=backend), {})
    for other in ("fa3", "torch_native", "trtllm_mha"):
        message = refused(changed(clean, device="cuda", attention_backend=other))
        assert message.startswith(f"--attention-backend {other} ") and "flashinfer" in message
    mixed = {"device": "cuda", "attention_backend": backend, "decode_attention_backend": "triton"}
    if backend != "triton":
        assert refused(changed(clean, **mixed)).startswith("--decode-attention-backend triton ")


@pytest.mark.parametrize(("phase", "backend"), [("prefill", "full"), ("decode", "breakable")])
def test_graphs_that_hide_queries_or_were_not_tested_are_refused(phase, backend, clean):
    graphs = copy.deepcopy(clean.cuda_graph_config)
    graphs[phase].backend = backend
    flag = f"--cuda-graph-backend-{phase}"
    assert refused(changed(clean, cuda_graph_config=graphs)).startswith(f"{flag} {backend} ")
    assert backend in FLAGS[flag].choices


@pytest.mark.parametrize(
    ("attributes", "fault"),
    [
        ({"attention_arch": AttentionArch.MLA}, "latent attention"),
        ({"is_hybrid_swa": True}, "sliding-window"),
        ({"is_encoder_decoder": True}, "cross attention"),
        ({"is_multimodal": True}, "image or audio"),
        ({"attention_chunk_size": 8192}, "chunked local attention"),
        ({"is_generation": False}, "no decoding"),
    ],
)
def test_model_is_refused(attributes, fault, clean):
    with pytest.raises(ConfigError) as error:
        check_model(changed(clean.get_model_config(), **attributes))
    message = str(error.value)
    assert fault in message and "\n" not in message
    assert re.match(r"--model-path \S+ does not go together with --enable-laprox: ", message)


def test_state_space_model_is_refused(clean, monkeypatch):
    monkeypatch.setattr("sglang.srt.configs.hybrid_arch.mambaish_config", lambda config: object())
    with pytest.raises(ConfigError, match="state-space"):
        check_model(clean.get_model_config())
