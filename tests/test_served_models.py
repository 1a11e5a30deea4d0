"""What is served of models and workers and the command line does not say: SGLang's own layers, on a CPU."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.mem_cache.kv_cache_dtype import configure_kv_cache_dtype
from sglang.srt.mem_cache.memory_pool import KVWriteLoc, MHATokenToKVPool
from sglang.srt.models.granite import GraniteAttention
from sglang.srt.models.granitemoe import GraniteMoeAttention
from sglang.srt.runtime_context import get_context, get_parallel
from transformers import GraniteConfig, GraniteMoeConfig, PretrainedConfig

from laprox_patches.model import attention_backend, memory_pool
from laprox_sglang.attention.backend import with_laprox
from laprox_sglang.cache.pool import LaproxKVPool
from laprox_sglang.projection import gram_matrices
from laprox_sglang.served_model import UnsupportedModel, scored_layers

SHAPE = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
MODELS = pytest.mark.parametrize(
    ("config", "layer"),
    [
        (GraniteConfig, lambda config, i: GraniteAttention(config, 64, 4, 2, layer_id=i)),
        (GraniteMoeConfig, lambda config, i: GraniteMoeAttention(config, 64, 4, 2, layer_id=i)),
    ],
)


def layers(
    config: PretrainedConfig, layer: Callable[[PretrainedConfig, int], torch.nn.Module]
) -> torch.nn.Module:
    """The attention of a model of SGLang's, on one rank."""
    with (
        get_context().override_server_args(attention_backend="torch_native", device="cpu"),
        get_parallel().override(tp_rank=0, tp_size=1),
    ):
        return torch.nn.Sequential(*(layer(config, i) for i in range(2)))


@MODELS
def test_granite_has_no_sinks(config, layer):
    assert gram_matrices(scored_layers(layers(config(**SHAPE), layer))).shape == (2, 4, 16, 16)


@MODELS
def test_granite_with_sinks_is_refused(config, layer):
    """In layers that attend to everything: those with a window are refused for that."""
    given = config(**SHAPE)
    given.model_type = {"granite": "granite_swa", "granitemoe": "granitemoe_swa"}[given.model_type]
    given.layer_types, given.layer_rope_theta, given.sliding_window = ["full_attention"] * 2, [1e4] * 2, 16
    with pytest.raises(UnsupportedModel, match=r"has attention sinks \(sinks\)"):
        scored_layers(layers(given, layer))


class Stock(AttentionBackend):
    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []

    def forward_extend(self, *given: Any, **keywords: Any) -> torch.Tensor:
        self.said.append(keywords)
        return given[0]

    forward_decode = forward_extend


def backend(over_views: bool) -> Any:
    decode = SimpleNamespace(rows=object() if over_views else None)
    runtime: Any = SimpleNamespace(decode=decode, pool=None, observe=lambda layer, queries: None)
    return with_laprox(Stock(), runtime)


GIVEN = (torch.zeros(1, 8), None, None, SimpleNamespace(layer_id=0), None)


@pytest.mark.parametrize("keyword", ["sinks", "what_the_next_sglang_adds"])
@pytest.mark.parametrize("phase", ["forward_extend", "forward_decode"])
def test_attention_over_views_drops_nothing_that_it_does_not_know(phase, keyword):
    given = {keyword: torch.zeros(4)}
    with pytest.raises(NotImplementedError, match=f"takes {keyword}") as error:
        getattr(backend(True), phase)(*GIVEN, **given)
    assert "\n" not in str(error.value)


def test_decode_of_whole_rows_is_stocks():
    stock, given = backend(False), {"sinks": torch.zeros(4)}
    stock.forward_decode(*GIVEN, **given)
    assert stock.said == [given]


def configurator(dtype: torch.dtype, draft: bool = False) -> Any:
    return SimpleNamespace(
        is_draft_worker=draft, kv_cache_dtype=dtype, server_args=SimpleNamespace(model_path="some/model")
    )


def built(configurator: Any) -> type:
    """The class of pool that SGLang is told to build."""
    given = {"max_total_num_tokens": 9, "mha_pool_class": MHATokenToKVPool}
    return memory_pool.build_pool(lambda self, **kwargs: kwargs["mha_pool_class"], configurator, **given)


@pytest.mark.parametrize("algorithm", ["FP8", None])
def test_a_checkpoint_that_quantizes_its_kv_is_served(algorithm):
    """No flag says so: SGLang takes it from the checkpoint where the flag says auto."""
    model: Any = SimpleNamespace(quant_config=SimpleNamespace(kv_cache_quant_algo=algorithm))
    _, dtype = configure_kv_cache_dtype(
        server_args_kv_cache_dtype="auto", model=model, model_dtype=torch.bfloat16, is_draft_worker=False,
        is_dflash=False, speculative_draft_attention_backend="",
    )  # fmt: skip
    assert dtype == (torch.bfloat16 if algorithm is None else torch.float8_e4m3fn)
    assert built(configurator(dtype)) is LaproxKVPool


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float4_e2m1fn_x2])
def test_another_quantized_kv_is_refused_whoever_asks_for_it(dtype):
    with pytest.raises(SystemExit, match="give --kv-cache-dtype fp8_e4m3 or bfloat16") as error:
        built(configurator(dtype))
    assert str(error.value).startswith(f"laprox: --model-path some/model keeps its KV as {dtype}, and of ")
    assert "\n" not in str(error.value)


def test_a_pool_of_fp8_is_numbers_over_sglangs_bytes():
    """They are divided by a checkpoint's scales where they are written, and by no others."""
    made = LaproxKVPool(9, 1, torch.float8_e4m3fn, 2, 4, 3, "cpu", False)
    assert made.keys.dtype == made.values.dtype == torch.float8_e4m3fn and made.slot_bytes == 2 * 3 * 2 * 4
    layer: Any = SimpleNamespace(layer_id=1)
    k, v = torch.tensor([8.0, 0.1]).view(2, 1, 1, 1).expand(2, 2, 2, 4).clone()
    scale = torch.tensor(0.25)
    made.set_kv_buffer(layer, KVWriteLoc(torch.tensor([5, 7]), None), k, v, scale, None)
    assert made.keys[[5, 7], 1].float().unique().tolist() == [32]
    assert made.values[[5, 7], 1].float().unique().tolist() == [0.1015625]
    assert made.keys.view(torch.uint8).count_nonzero() == 2 * 2 * 4
    for held, buffer in ((made.keys, made.get_key_buffer(1)), (made.values, made.get_value_buffer(1))):
        assert buffer.dtype == held.dtype and buffer.data_ptr() == held[:, 1].data_ptr()


def test_a_draft_worker_is_stocks(monkeypatch):
    """Whatever its KV is kept as."""
    assert built(configurator(torch.float8_e5m2, draft=True)) is MHATokenToKVPool
    monkeypatch.setattr(attention_backend, "install", lambda: None)
    stock = Stock()
    assert attention_backend.wrap(stock, SimpleNamespace(is_draft_worker=True), None) is stock
    assert type(stock) is Stock
