"""Gram matrices of a model's output projections, and the models that have none we could use."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.lora.layers import RowParallelLinearWithLoRA
from sglang.srt.models.transformers import TransformersBase

from laprox_sglang import projection
from laprox_sglang.projection import gram_matrices, output_weights, reading_bytes
from laprox_sglang.served_model import OUTPUT_PROJECTIONS, UnsupportedModel, scored_layers
from memory import Peak

QUERY_HEADS, HEADS, DIM, HIDDEN = 4, 2, 6, 10


class Attention(torch.nn.Module):
    def __init__(
        self, layer: int, projection: str = "o_proj", query_heads: int = QUERY_HEADS, **options
    ) -> None:
        super().__init__()
        options = {"head_dim": DIM, "scaling": DIM**-0.5, "num_kv_heads": HEADS} | options
        self.attn = RadixAttention(query_heads, layer_id=layer, **options)
        setattr(self, projection, torch.nn.Linear(query_heads * options["head_dim"], HIDDEN, bias=False))


def model(*layers: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.Sequential(*layers)


class Quantized(torch.nn.Module):
    """A projection whose weight is packed: it can be applied, and not be read."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.real = weight
        self.weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
        self.params_dtype = torch.float32
        self.largest_block = 0
        self.quant_method = SimpleNamespace(apply=self.apply_quantized)

    def apply_quantized(self, layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        assert layer is self
        self.largest_block = max(self.largest_block, len(x))
        return x @ self.real.T


def test_gram_form_equals_the_explicit_norm(seed):
    torch.manual_seed(seed)
    net = model(Attention(0), Attention(1))
    grams = gram_matrices(scored_layers(net))
    assert grams.shape == (2, QUERY_HEADS, DIM, DIM) and grams.dtype == torch.float32
    values = torch.randn(50, DIM)
    for layer in range(2):
        weight = net[layer].o_proj.weight.detach()
        for head in range(QUERY_HEADS):
            projected = values @ weight[:, head * DIM : (head + 1) * DIM].T
            by_gram = torch.einsum("nd,de,ne->n", values, grams[layer, head], values).sqrt()
            torch.testing.assert_close(by_gram, projected.norm(dim=1), rtol=1e-4, atol=1e-5)


def test_layers_are_found_by_their_number_whatever_their_place():
    net = model(Attention(2), Attention(0), Attention(1))
    layers = scored_layers(net)
    assert [layer.name for layer in layers] == ["1.attn", "2.attn", "0.attn"]
    assert [layer.index for layer in layers] == [0, 1, 2]
    head = net[0].o_proj.weight.detach()[:, :DIM]
    torch.testing.assert_close(gram_matrices(layers)[2, 0], head.T @ head)


@pytest.mark.parametrize("name", OUTPUT_PROJECTIONS)
def test_projections_by_their_usual_names(name):
    assert len(scored_layers(model(Attention(0, name)))) == 1


def test_the_weights_behind_an_adapter_are_read(seed):
    """SGLang wraps the projections that adapters change; those that are packed can only be applied inside."""
    torch.manual_seed(seed)
    plain, packed = model(Attention(0), Attention(1)), Quantized(torch.randn(HIDDEN, QUERY_HEADS * DIM))
    plain[1].o_proj = packed
    expected = gram_matrices(scored_layers(plain))
    for layer in plain:
        layer.o_proj = RowParallelLinearWithLoRA(layer.o_proj, SimpleNamespace())
    assert torch.equal(gram_matrices(scored_layers(plain)), expected)


def test_half_precision_weights_are_widened():
    net = model(Attention(0)).to(torch.bfloat16)
    head = net[0].o_proj.weight.detach().float()[:, :DIM]
    torch.testing.assert_close(gram_matrices(scored_layers(net))[0, 0], head.T @ head)


@pytest.mark.parametrize("at_once", [1, 3, 4, 99])
def test_quantized_projection_is_read_through_its_method(at_once, monkeypatch, seed):
    torch.manual_seed(seed)
    net = model(Attention(0))
    expected, weights = gram_matrices(scored_layers(net)), output_weights(scored_layers(net)[0])
    monkeypatch.setattr(projection, "HEADS_AT_ONCE", at_once)
    torch.testing.assert_close(gram_matrices(scored_layers(net)), expected)
    net[0].o_proj = Quantized(net[0].o_proj.weight.detach())
    torch.testing.assert_close(gram_matrices(scored_layers(net)), expected)
    assert net[0].o_proj.largest_block == min(at_once, QUERY_HEADS) * DIM
    torch.testing.assert_close(output_weights(scored_layers(net)[0]), weights)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_new_weights_take_no_more_than_was_set_aside(dtype, quantized):
    """After the start the KV pool has all the memory, so W_O of a layer is never made in float32 whole."""
    query_heads, dim, hidden = 28, 128, 3584
    net = model(Attention(0, query_heads=query_heads, head_dim=dim, num_kv_heads=4))
    weight = torch.zeros((hidden, query_heads * dim), dtype=dtype)
    net[0].o_proj.weight = torch.nn.Parameter(weight, requires_grad=False)
    if quantized:
        net[0].o_proj = Quantized(weight)
        net[0].o_proj.params_dtype = dtype
    out = torch.empty((1, query_heads, dim, dim))
    layers = scored_layers(net)
    with Peak() as used:
        gram_matrices(layers, out)
    bound = reading_bytes(query_heads, dim, hidden)
    print(f"{used.peak / 1e6:.1f} MB of {bound / 1e6:.1f}; W_O in float32 {4 * weight.numel() / 1e6:.1f}")
    assert used.peak <= bound < 4 * weight.numel()


@pytest.mark.parametrize(
    ("layers", "fault"),
    [
        ([Attention(0, sliding_window_size=128)], "a sliding window"),
        ([Attention(0), Attention(1, logit_cap=30.0)], "logit capping"),
        ([Attention(0, is_cross_attention=True)], "cross attention"),
        ([Attention(0, attn_type=AttentionType.ENCODER_ONLY)], "not causal"),
        ([Attention(0, use_irope=True)], "chunked local attention"),
        ([Attention(0, v_head_dim=DIM + 2)], "values of another size"),
        ([Attention(0), Attention(1, query_heads=2)], "differ"),
        ([Attention(0), Attention(1, num_kv_heads=1)], "differ"),
        ([Attention(0), Attention(1, head_dim=DIM + 2)], "differ"),
        ([Attention(0), Attention(1, scaling=1.0)], "differ"),
        ([Attention(0), Attention(2)], "without gaps"),
        ([Attention(1)], "without gaps"),
        ([Attention(0), Attention(0)], "without gaps"),
        ([torch.nn.Linear(2, 2)], "0 attention layers"),
        ([Attention(0, "proj")], "no output projection"),
    ],
)
def test_other_attention_is_refused_in_one_line(layers, fault):
    with pytest.raises(UnsupportedModel) as error:
        scored_layers(model(*layers))
    assert fault in str(error.value) and "\n" not in str(error.value)


def test_temperature_by_length_is_refused():
    net = model(Attention(0))
    net[0].attn.xai_temperature_len = 1024
    with pytest.raises(UnsupportedModel, match="temperature"):
        scored_layers(net)


class WithSinks(Attention):
    """Attention whose model may have learned sinks, under one of the names that they have."""

    def __init__(self, name, value) -> None:
        super().__init__(0)
        self.has_sink, self.sink_size = value is not None, 4
        setattr(self, name, value)


@pytest.mark.parametrize("name", ["sinks", "attention_sink_bias"])
def test_sinks_are_refused_where_there_are_any(name):
    assert len(scored_layers(model(WithSinks(name, None)))) == 1
    for value in (torch.nn.Parameter(torch.zeros(4)), torch.zeros(4)):
        with pytest.raises(UnsupportedModel, match=rf"has attention sinks \({name}\)"):
            scored_layers(model(WithSinks(name, value)))


class Foreign(torch.nn.Module):
    """An attention layer of Hugging Face's: SGLang's own is not among its modules."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.layer_idx, self.scaling = number, 0.3
        self.o_proj = torch.nn.Linear(QUERY_HEADS * DIM, HIDDEN, bias=False)


def test_layers_of_the_transformers_backend_are_found():
    """It has its attention layers in a plain dict, where no module is found."""
    source = inspect.getsource(TransformersBase.__init__)
    assert "self.attention_instances = self._create_attention_instances()" in source
    net = model(Foreign(1), torch.nn.Linear(2, 2), Foreign(0))
    net.attention_instances = {number: Attention(number).attn for number in (0, 1)}
    first, second = scored_layers(net)
    assert (first.name, second.name) == ("2", "0") and second.module is net.attention_instances[1]
    assert first.projection is net[2].o_proj and first.scaling == 0.3
    net[1].layer_idx, net[1].wo = 1, torch.nn.Identity()
    with pytest.raises(UnsupportedModel, match="both 0 and 1 are layer 1"):
        scored_layers(net)
    del net[1].wo
    net.attention_instances[2] = Attention(2).attn
    with pytest.raises(UnsupportedModel, match="finds no module with the output projection of layer 2"):
        scored_layers(net)
