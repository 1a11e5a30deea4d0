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
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.model_executor.runner import decode_cuda_graph_runner
from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner
from sglang.srt.model_executor.runner_utils.capture_mode import get_capture_attention_variant
from sglang.srt.runtime_context import get_parallel, override_platform
from sglang.srt.server_args import ServerArgs

from laprox_kernels import Unsupported, check_serving, dispatch, lengths_of_every_kind, score_bytes
from laprox_kernels.gpu import select
from laprox_kernels.gpu.support import SCORE_BYTES, power_of_two
from laprox_patches import arguments, seams
from laprox_patches.model import decode_graphs, memory_pool
from laprox_sglang.attention.backend import with_laprox
from laprox_sglang.attention.decode_batch import DecodeBatch
from laprox_sglang.options.check import check_arguments
from laprox_sglang.options.request import Instructions, Options
from laprox_sglang.options.server import ENVIRONMENT, Config
from laprox_sglang.options.values import ConfigError
from laprox_sglang.projection import HEADS_AT_ONCE
from laprox_sglang.views.memory import (
    PREFILL_REQUESTS,
    Itemsizes,
    graph_rows,
    largest_view,
    most_running,
    needs,
    table,
    windows,
)
from laprox_sglang.views.plan import Plan, make_plan
from laprox_sglang.views.view import View
from laprox_tools.needle import MODEL_PATH

LLAMA = SimpleNamespace(
    num_hidden_layers=32,
    num_attention_heads=32,
    head_dim=128,
    context_len=32768,
    hidden_size=4096,
    get_num_kv_heads=lambda ranks: 8 // ranks,
    dtype=torch.bfloat16,
)
BF16, FP8 = Itemsizes(2, 2), Itemsizes(1, 2)


SLOT = 32 * 8 * 128 * 2 * 2
POOL = 788_603 * SLOT


def server_args(**changes):
    decode = SimpleNamespace(backend="full", bs=[1, 2, 4, 64])
    given = {"max_prefill_tokens": 16384, "chunked_prefill_size": 8192, "max_running_requests": None}
    given |= {"max_total_tokens": None, "prefill_max_requests": PREFILL_REQUESTS}
    return SimpleNamespace(cuda_graph_config=SimpleNamespace(decode=decode), **(given | changes))


def test_needs_at_the_headline_size():
    """Llama-3.1-8B, 32K, 5 %: what issue and design say by hand."""
    parts = needs(Config(budget=0.05), LLAMA, 1, server_args(), BF16, POOL)
    assert parts["packing"] == 1639 * 256 * (2 * 128 * 2 + 16)  # 215 MB of cells, their indices, tokens
    assert parts["scores"] == 4 * 256 * 32768 + SCORE_BYTES
    # Those of the largest graph, and beside them as many as SGLang lets run.
    assert most_running(788_603, 32768) == 4096
    assert parts["decode rows"] == 64 * (4 * (32768 + 16) + 8 * 262) + 4096 * (4 * 32768 + 8 * 262)
    # 25 MB to make them anew: 4 heads of W_O as they are and in float32, and rows of the identity.
    block = HEADS_AT_ONCE * 128 * (4096 + 4096 + 4096) * 4
    assert parts["Gram matrices"] == 32 * 32 * 128 * 128 * (4 + 2) + block
    # 6.3 MB a prompt, for a batch of 64, one that comes in chunks, and the one that is scored.
    assert parts["window queries"] == (64 + 2) * 32 * 24 * 32 * 128 * 2
    assert sum(parts.values()) < POOL / 70
    # A bound on what runs at once is one on this, too.
    fewer = needs(Config(budget=0.05), LLAMA, 1, server_args(max_running_requests=64), BF16, POOL)
    assert sum(fewer.values()) < POOL / 100
    # What no kernel scores goes layer by layer in float32: attention and logits, six tensors like K, W_O.
    parts = needs(Config(budget=0.05, scorer="snapkv"), LLAMA, 1, server_args(), BF16, POOL)
    attention, keys = 32 * 25 * 32768 * 4, 8 * 128 * 32768 * 4
    assert parts["layer by layer"] == 2 * attention + 6 * keys + 2 * (4096 + 2048) * 4096 * 4
    assert sum(parts.values()) < POOL / 35


def test_fp8_halves_what_lies_in_the_pool_and_nothing_of_the_models():
    """With the pool's bytes for queries or Gram matrices a server would die late, of a full card."""
    args = server_args(max_running_requests=64)
    # As many slots.
    full, half = needs(Config(), LLAMA, 1, args, BF16, POOL), needs(Config(), LLAMA, 1, args, FP8, POOL // 2)
    assert half["packing"] == full["packing"] - largest_view(Config(), 32768) * 256 * 2 * 128
    assert half | {"packing": 0} == full | {"packing": 0}
    # What is set aside for a server is counted of its pool, and of its model.
    builder = SimpleNamespace(
        server_args=server_args(_laprox=Config()), model_config=LLAMA, kv_cache_dtype=torch.float8_e4m3fn
    )
    with get_parallel().override(attn_tp_size=1):
        left = memory_pool.leave_room(POOL, builder, 0)
    assert POOL - left == sum(needs(Config(), LLAMA, 1, server_args(), FP8, POOL).values())


def test_buffers_follow_what_the_server_can_run():
    assert graph_rows(server_args()) == 64
    assert graph_rows(server_args(max_running_requests=9)) == 9
    args = server_args()
    args.cuda_graph_config.decode.backend = "disabled"
    assert graph_rows(args) == 0
    # Without graphs each step makes what its rows need, and there may be as many as run.
    args.max_running_requests = 9
    assert graph_rows(args) == 0
    assert needs(Config(), LLAMA, 1, args, BF16, POOL)["decode rows"] == 9 * (4 * 32768 + 8 * 262)
    # Two slots for each that runs; and no row is longer than the pool.
    assert needs(Config(), LLAMA, 1, args, BF16, 10 * SLOT)["decode rows"] == 5 * (4 * 10 + 8 * 262)


@pytest.mark.parametrize("graphs", [0, 3])
@pytest.mark.parametrize("rows", [2, 5])
def test_a_step_s_tables_are_as_large_as_is_said(graphs, rows):
    """Rows as long as the pool, more of them than the largest graph has."""
    longest, cells = 100, 6
    decode = DecodeBatch(torch.zeros((rows + 1, longest + 16), dtype=torch.int32), 2, 3)
    view = View.of(
        Plan(0, 20, 20, 0, 1, None),
        torch.arange(20),
        2,
        torch.zeros(cells + 1, dtype=torch.int64),
        torch.zeros(cells + 2),
    )
    decode.allocate(graphs)
    decode.take_step([view, *[None] * (rows - 1)], [longest] * rows)
    decode.prepare(torch.arange(rows), torch.full((rows,), longest))
    assert decode.rows is not None
    said = table(graphs, longest + 16, cells) + table(rows, longest, cells)
    buffers = [*decode.rows, *decode._graph_rows]
    made = sum({x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in buffers}.values())
    assert made == said


def test_scores_of_a_long_prompt_are_counted():
    """Qwen2.5-7B-1M: the contributions of one layer are 113 MB, and what bounds many of them is 67."""
    assert score_bytes(28, 4, 1_010_000) == 4 * 28 * 1_010_000 == 113_120_000
    # An even number of query heads is scored in pairs.
    assert score_bytes(32, 8, 10**6) == SCORE_BYTES == 2**26 > 4 * 16 * 10**6
    qwen = SimpleNamespace(
        num_hidden_layers=28, num_attention_heads=28, head_dim=128, context_len=1_010_000, hidden_size=3584,
        get_num_kv_heads=lambda ranks: 4 // ranks,
    )  # fmt: skip
    parts = needs(Config(), qwen, 1, server_args(max_running_requests=64), BF16, 10**6 * 1_010_000)
    assert parts["scores"] == 4 * 28 * 4 * 1_010_000 + 113_120_000


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
        small = needs(Config(budget=0.02), LLAMA, 1, args, BF16, available)
        assert small["packing"] == 656 * cell
        assert small["scores"] == 4 * 256 * 1000 + SCORE_BYTES
        # No view has more slots than its prompt.
        assert needs(Config(budget=0.05), LLAMA, 1, args, BF16, available)["packing"] == 1000 * cell


def test_no_view_is_larger_than_what_is_packed():
    """However long its instructions are, and whatever its request asks for."""
    config = Config(budget=0.02)
    most = largest_view(config, LLAMA.context_len)
    assert most == 656
    # What is left beside the sinks and the window.
    inside = most - config.sink_tokens - config.longest_window

    def instructed(tokens):
        return make_plan(config, Options(), 1000, 9, True, Instructions(((4, 4 + tokens),), most))

    assert instructed(inside).pruned and instructed(inside).least == most
    assert instructed(inside + 1).reason == "within_budget"
    assert make_plan(Config(budget=0.05), Options(budget=656), 2000, 9).least == 100
    # What a fraction is at least is packed too.
    assert largest_view(Config(budget=0.01), 2048) == make_plan(Config(budget=0.01), Options(), 300, 9).least


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
    total = sum(needs(args._laprox, LLAMA, 1, args, BF16, POOL).values())
    with caplog.at_level("INFO"), get_parallel().override(attn_tp_size=1):
        assert memory_pool.leave_room(POOL, builder, 0) == POOL - total
    assert f"reserves {total / 1e6:.0f} MB" in caplog.text
    with pytest.raises(SystemExit) as error, get_parallel().override(attn_tp_size=1):
        memory_pool.leave_room(10**8, builder, 0)
    assert "--max-running-requests or --laprox-budget" in str(error.value) and "\n" not in str(error.value)


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
    refused = "was not tried" if flag.endswith("trtllm_mha") else "does not go together"
    assert message.startswith(f"{flag} {refused}") and "\n" not in message
    assert f"give --attention-backend {advice}" in message


@pytest.mark.parametrize("backend", ["flashinfer", "triton"])
def test_what_a_refusal_offers_on_a_b200_is_served_there(on_card, backend):
    check_arguments(on_card(BLACKWELL, attention_backend=backend), {})


def test_without_the_flag_nothing_is_chosen(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    args = ServerArgs(model_path=str(MODEL_PATH))
    arguments.enable(args)
    assert args == ServerArgs(model_path=str(MODEL_PATH)) and not hasattr(args, "_laprox")


class GraphRunner(DecodeCudaGraphRunner):
    """SGLang's own loop over what is captured, and its own choice of a graph; nothing is captured."""

    def __init__(self, backend: AttentionBackend) -> None:
        self.attn_backend, self.attention_graph_variants = backend, None
        self.capture_bs, self.compile_bs, self.record_nolora_graph = [1, 2], (), False
        self.model_runner = SimpleNamespace(device="cuda", gpu_id=0, model=torch.nn.Identity())
        self.captured_req_width, self._profiler, self.captured = 1, None, []

    def capture_one_shape(self, size, *given):
        self.captured.append((size, get_capture_attention_variant()))


def graph_runner(backend: AttentionBackend, monkeypatch) -> GraphRunner:
    runner = GraphRunner(backend)
    monkeypatch.setattr(decode_cuda_graph_runner, "get_available_gpu_memory", lambda *a, **kw: 1.0)
    monkeypatch.setattr(
        decode_cuda_graph_runner, "get_parallel", lambda: SimpleNamespace(tp_rank=1, tp_group=None)
    )
    decode_graphs.capture_both(runner)
    runner._capture_one_stream()
    return runner


def test_graph_families_follow_the_batch(monkeypatch):
    laprox = SimpleNamespace(decode=SimpleNamespace(compressed=True))
    runner = graph_runner(
        with_laprox(TorchNativeAttnBackend.__new__(TorchNativeAttnBackend), laprox), monkeypatch
    )
    assert runner.captured == [(2, "compressed"), (2, "whole"), (1, "compressed"), (1, "whole")]
    assert runner._resolve_attention_variant(None, 2) == "compressed"
    laprox.decode.compressed = False
    assert runner._resolve_attention_variant(None, 2) == "whole"


def test_graphs_of_a_backend_that_is_not_ours_stay_as_they_are(monkeypatch):
    """A draft worker's, say."""
    runner = graph_runner(TorchNativeAttnBackend.__new__(TorchNativeAttnBackend), monkeypatch)
    assert runner.captured == [(2, None), (1, None)]


@pytest.mark.parametrize(("capability", "served"), [((8, 0), False), ((8, 9), True), ((9, 0), True)])
def test_a_card_that_reads_no_fp8_is_named_before_anything_is_served(capability, served, monkeypatch):
    """An A100, for which Triton compiles no e4m3."""
    monkeypatch.setattr(dispatch, "on_gpu", lambda device: True)
    monkeypatch.setattr(dispatch, "shared_memory", lambda device: dispatch.SHARED_MEMORY)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A1")
    queries = torch.zeros((2, 8, 4, 64), dtype=torch.bfloat16, device="meta")
    pool = torch.zeros((4, 2, 2, 64), dtype=torch.float8_e4m3fn, device="meta")
    if served:
        check_serving(pool, pool, queries)
    else:
        with pytest.raises(Unsupported, match=r"dtype torch\.float8_e4m3fn on A1 .*sm_89"):
            check_serving(pool, pool, queries)
    full = pool.to(torch.bfloat16)
    check_serving(full, full, queries)


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
    given = model_config_of(args), 1, view, Itemsizes(4, 4), POOL
    parts = needs(Config(), *given)
    assert needs(Config(scorer="snapkv"), *given)["layer by layer"] > 0
    # What was typed stays empty where SGLang chose.
    assert args.chunked_prefill_size is None and view.chunked_prefill_size > 0
    assert windows(Config(), view) > 1
    assert parts["Gram matrices"] == 8 * 8 * 64 * 64 * 8 + 4 * 64 * (512 + 2 * 256) * 4
    assert all(part >= 0 for part in parts.values())
