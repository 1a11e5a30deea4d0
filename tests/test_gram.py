"""Gram matrices of a model's output projections, and the models that have none we could use."""

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention

from laprox_sglang import gram
from laprox_sglang.gram import UnsupportedModel, attention_layers, gram_matrices

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
    grams = gram_matrices(net)
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
    assert [layer.layer_id for layer, _ in attention_layers(net)] == [0, 1, 2]
    head = net[0].o_proj.weight.detach()[:, :DIM]
    torch.testing.assert_close(gram_matrices(net)[2, 0], head.T @ head)


@pytest.mark.parametrize("name", gram.OUTPUT_PROJECTIONS)
def test_projections_by_their_usual_names(name):
    assert len(attention_layers(model(Attention(0, name)))) == 1


def test_half_precision_weights_are_widened():
    net = model(Attention(0)).to(torch.bfloat16)
    head = net[0].o_proj.weight.detach().float()[:, :DIM]
    torch.testing.assert_close(gram_matrices(net)[0, 0], head.T @ head)


@pytest.mark.parametrize("block", [1, 5, 1024])
def test_quantized_projection_is_read_through_its_method(block, monkeypatch, seed):
    torch.manual_seed(seed)
    monkeypatch.setattr(gram, "BLOCK", block)
    net = model(Attention(0))
    expected = gram_matrices(net)
    net[0].o_proj = Quantized(net[0].o_proj.weight.detach())
    torch.testing.assert_close(gram_matrices(net), expected)
    assert net[0].o_proj.largest_block <= block


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
        gram_matrices(model(*layers))
    assert fault in str(error.value) and "\n" not in str(error.value)


def test_temperature_by_length_is_refused():
    net = model(Attention(0))
    net[0].attn.xai_temperature_len = 1024
    with pytest.raises(UnsupportedModel, match="temperature"):
        gram_matrices(net)
