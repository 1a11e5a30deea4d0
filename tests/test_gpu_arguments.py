"""What a server on a GPU is given, and what it is told; none of it needs the GPU."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from sglang.srt.arg_groups import model_override_base
from sglang.srt.arg_groups.model_override_base import model_config_of
from sglang.srt.arg_groups.overrides import resolved_view
from sglang.srt.runtime_context import override_platform
from sglang.srt.server_args import ServerArgs

from laprox_kernels import SCORE_BYTES, Unsupported, check_serving, lengths_of_every_kind
from laprox_kernels.gpu import select
from laprox_kernels.gpu.support import power_of_two
from laprox_patches import arguments, decode_graphs, memory_pool, seams
from laprox_sglang.options.refusals import check_arguments
from laprox_sglang.options.request import Options
from laprox_sglang.options.server import ENVIRONMENT, Config
from laprox_sglang.options.values import ConfigError
from laprox_sglang.views.memory import PREFILL_REQUESTS, graph_rows, needs, windows
from laprox_tools.needle import MODEL_PATH

LLAMA = SimpleNamespace(
    num_hidden_layers=32,
    num_attention_heads=32,
    head_dim=128,
    context_len=32768,
    hidden_size=4096,
    get_num_kv_heads=lambda tp: 8,
)


SLOT = 32 * 8 * 128 * 2 * 2
POOL = 788_603 * SLOT


def server_args(**changes):
    decode = SimpleNamespace(backend="full", bs=[1, 2, 4, 64])
    given = {"max_prefill_tokens": 16384, "chunked_prefill_size": 8192, "max_running_requests": None}
    given |= {"max_total_tokens": None, "prefill_max_requests": PREFILL_REQUESTS}
    return SimpleNamespace(cuda_graph_config=SimpleNamespace(decode=decode), **(given | changes))


def test_needs_at_the_headline_size():
    """Llama-3.1-8B, 32K, 5 %: what issue and design say by hand."""
    parts = needs(Config(budget=0.05), LLAMA, server_args(), 2, POOL)
    assert parts["packing"] == 1639 * 256 * (2 * 128 * 2 + 16)  # 215 MB of cells, their indices, tokens
    assert parts["scores"] == 4 * 256 * 32768 + SCORE_BYTES
    assert parts["decode rows"] == 64 * (4 * (32768 + 16) + 8 * 260)
    assert parts["Gram matrices"] == 32 * 32 * 128 * 128 * (4 + 2)
    # 6.3 MB a prompt, for a batch of 64, one that comes in chunks, and the one that is scored.
    assert parts["window queries"] == (64 + 2) * 32 * 24 * 32 * 128 * 2
    assert sum(parts.values()) < POOL / 100
    # What no kernel scores goes layer by layer in float32: attention and logits, six tensors like K, W_O.
    parts = needs(Config(budget=0.05, scorer="snapkv"), LLAMA, server_args(), 2, POOL)
    attention, keys = 32 * 25 * 32768 * 4, 8 * 128 * 32768 * 4
    assert parts["layer by layer"] == 2 * attention + 6 * keys + 2 * (4096 + 2048) * 4096 * 4
    assert sum(parts.values()) < POOL / 40


def test_buffers_follow_what_the_server_can_run():
    assert graph_rows(server_args()) == 64
    assert graph_rows(server_args(max_running_requests=9)) == 9
    args = server_args()
    args.cuda_graph_config.decode.backend = "disabled"
    assert graph_rows(args) == 0
    # Without graphs each step makes what its rows need, and there may be as many as run.
    args.max_running_requests = 9
    assert graph_rows(args) == 0
    assert needs(Config(), LLAMA, args, 2, POOL)["decode rows"] == 9 * (4 * (32768 + 16) + 8 * 260)


@pytest.mark.parametrize(
    ("changes", "prompts"),
    [
        ({}, 64),
        ({"prefill_max_requests": None}, 64),
        ({"prefill_max_requests": 5}, 5),
        # Each computes its window of 32 at least, whatever is cached.
        ({"max_prefill_tokens": 300, "chunked_prefill_size": -1}, 10),
        ({"max_prefill_tokens": 300, "chunked_prefill_size": 900}, 29),
        ({"max_prefill_tokens": None, "chunked_prefill_size": None}, 0),
    ],
)
def test_prompts_of_one_prefill_batch_are_bounded(changes, prompts):
    assert windows(Config(window=32), server_args(**changes)) == prompts + 1


def test_a_prompt_is_no_longer_than_the_pool():
    """Whether the memory or a flag limits it."""
    cell = 256 * (2 * 128 * 2 + 16)
    for args, available in ((server_args(max_total_tokens=1000), POOL), (server_args(), 1000 * SLOT)):
        small = needs(Config(budget=0.02), LLAMA, args, 2, available)
        # A request may ask for a number of tokens: 2 % of the context, be it 66 % of its prompt.
        Options(budget=656).check(Config(budget=0.02), LLAMA.context_len)
        assert small["packing"] == 656 * cell
        assert small["scores"] == 4 * 256 * 1000 + SCORE_BYTES
        assert needs(Config(budget=0.2), LLAMA, args, 2, available)["packing"] == 1000 * cell


@pytest.mark.parametrize("cells", [256, 72, 56, 36])
@pytest.mark.parametrize(("shortest", "longest"), [(256, 49152), (257, 40959), (100, 5003)])
def test_no_prompt_is_the_first_of_its_kind(cells, shortest, longest):
    """What the kernels are compiled for at the start is all that they are compiled for."""

    def kinds(lengths):
        blocks = {n: triton.cdiv(cells * n, select.COMPACTION_BLOCK) for n in lengths}
        most = select.MAX_COMPACTION_PROGRAMS
        return {(cells * n % 16 == 0, min(power_of_two(blocks[n]), most)) for n in lengths}

    warm = lengths_of_every_kind(cells, shortest, longest)
    assert shortest <= min(warm) and max(warm) <= longest and len(warm) < 24
    assert kinds(warm) == kinds(range(shortest, longest + 1))
    assert lengths_of_every_kind(cells, longest + 1, longest) == []


def test_the_pool_gets_what_is_left(caplog):
    args = server_args(_laprox=Config(budget=0.05))
    builder = SimpleNamespace(server_args=args, model_config=LLAMA, kv_cache_dtype=torch.bfloat16)
    total = sum(needs(args._laprox, LLAMA, args, 2, POOL).values())
    with caplog.at_level("INFO"):
        assert memory_pool.leave_room(POOL, builder, 0) == POOL - total
    assert f"reserves {total / 1e6:.0f} MB" in caplog.text
    with pytest.raises(SystemExit) as error:
        memory_pool.leave_room(10**8, builder, 0)
    assert "--laprox-budget" in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def on_card(monkeypatch) -> Callable[..., Any]:
    """Resolves arguments as SGLang does on a card of which these facts are true, LaProx on."""
    monkeypatch.setenv(ENVIRONMENT, Config().to_json())
    # The hooks themselves stay out of this process.
    monkeypatch.setattr(seams, "register_all", lambda: None)
    monkeypatch.setattr(arguments, "install", lambda: None)
    # Ours stands for a machine without a GPU.
    nvidia = SimpleNamespace(is_out_of_tree=lambda: False)
    monkeypatch.setattr(model_override_base, "current_platform", nvidia)

    def resolve(facts: Sequence[str], **given: Any) -> Any:
        card = {name: name in facts for name in ("is_hopper_with_cuda_12_3", "is_sm100", "has_flashinfer")}
        given |= {"device": "cuda", "sampling_backend": "pytorch", "grammar_backend": "none"}
        args = ServerArgs(model_path=str(MODEL_PATH), **given)
        with override_platform(**card):
            arguments.enable(args)
            args.resolve_once()
        assert args._laprox == Config() and args.radix_cache_backend == "laprox"
        return resolved_view(args)

    return resolve


PHASES = ("prefill_attention_backend", "decode_attention_backend")
HOPPER, AMPERE = ("is_hopper_with_cuda_12_3", "has_flashinfer"), ("has_flashinfer",)
BLACKWELL = ("is_sm100", "has_flashinfer")


@pytest.mark.parametrize(
    ("card", "given", "chosen"),
    [
        (HOPPER, {}, "fa3"),
        (AMPERE, {}, "flashinfer"),
        ((), {}, "triton"),
        (HOPPER, {"attention_backend": "flashinfer"}, "flashinfer"),
        (HOPPER, {"attention_backend": "triton"}, "triton"),
        (AMPERE, {"attention_backend": "fa3"}, "fa3"),
        (BLACKWELL, {"attention_backend": "flashinfer"}, "flashinfer"),
        (HOPPER, dict.fromkeys(PHASES, "triton"), "triton"),
        (HOPPER, {"decode_attention_backend": "fa3"}, "fa3"),
    ],
)
def test_the_backend_is_the_one_that_sglang_takes(on_card, card, given, chosen):
    args = on_card(card, **given)
    assert args.attention_backend == chosen
    check_arguments(args, {})


@pytest.mark.parametrize(
    ("card", "given", "flag", "advice"),
    [
        # It brings a page size of 64, which nobody asked for.
        (BLACKWELL, {}, "--attention-backend trtllm_mha", "flashinfer or triton (or fa3, on an A100"),
        (HOPPER, {"decode_attention_backend": "triton"}, "--decode-attention-backend triton", "triton alone"),
        (AMPERE, {"prefill_attention_backend": "fa3"}, "--prefill-attention-backend fa3", "fa3 alone"),
    ],
)
def test_a_backend_that_is_not_served_is_one_line_that_says_what_to_give(on_card, card, given, flag, advice):
    with pytest.raises(ConfigError) as error:
        check_arguments(on_card(card, **given), {})
    message = str(error.value)
    assert message.startswith(f"{flag} does not go together") and "\n" not in message
    assert f"give --attention-backend {advice}" in message


@pytest.mark.parametrize("backend", ["flashinfer", "triton"])
def test_what_a_refusal_offers_on_a_b200_is_served_there(on_card, backend):
    check_arguments(on_card(BLACKWELL, attention_backend=backend), {})


def test_without_the_flag_nothing_is_chosen(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    args = ServerArgs(model_path=str(MODEL_PATH))
    arguments.enable(args)
    assert args == ServerArgs(model_path=str(MODEL_PATH)) and not hasattr(args, "_laprox")


def test_graph_families_follow_the_batch():
    runner = SimpleNamespace(attn_backend=SimpleNamespace(laprox=SimpleNamespace(decode=SimpleNamespace())))
    decode_graphs.capture_both(runner)
    assert runner.record_nolora_graph
    labels = set()
    for compressed in (True, False):
        runner.attn_backend.laprox.decode.compressed = compressed
        labels.add(decode_graphs.family(None, runner, None))
    # The labels under which SGLang captures; without adapters it captures neither.
    assert labels == {"lora", "nolora"}


def test_what_no_kernel_serves_is_named_before_anything_is_served():
    pool = torch.zeros((4, 2, 2, 64), dtype=torch.bfloat16, device="meta")
    with pytest.raises(Unsupported, match="device meta"):
        check_serving(pool, pool, torch.zeros((8, 4, 64), dtype=torch.bfloat16, device="meta"))
    cpu = torch.zeros((4, 2, 2, 16))
    check_serving(cpu, cpu, torch.zeros((99, 4, 16)))


def test_real_arguments_have_what_the_sizes_are_made_of():
    args = ServerArgs(
        model_path=str(MODEL_PATH),
        device="cpu",
        attention_backend="torch_native",
        sampling_backend="pytorch",
        grammar_backend="none",
        dtype="float32",
        max_running_requests=7,
    )
    args.resolve_once()
    view = resolved_view(args)
    parts = needs(Config(), model_config_of(args), view, 4, POOL)
    assert needs(Config(scorer="snapkv"), model_config_of(args), view, 4, POOL)["layer by layer"] > 0
    # What was typed stays empty where SGLang chose.
    assert args.chunked_prefill_size is None and view.chunked_prefill_size > 0
    assert windows(Config(), view) > 1
    assert parts["Gram matrices"] == 8 * 8 * 64 * 64 * 8 and all(part >= 0 for part in parts.values())
