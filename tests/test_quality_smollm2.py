"""A tiny Llama goes to GGUF and back. The real one is too large here."""

from pathlib import Path

import pytest
import torch
from gguf import GGUFWriter, TokenType
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.quality.smollm2 import convert

pytestmark = pytest.mark.full

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADS, KV_HEADS, DIM, HIDDEN, LAYERS = 4, 2, 8, 32, 2


def tokens() -> list[str]:
    """Every byte as GPT-2 writes it, and one merged pair."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    written = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [*SPECIAL, *(written[byte] for byte in range(256)), "ab"]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> tuple[LlamaForCausalLM, Path]:
    """A random Llama, and the same as llama.cpp would have it."""
    config = LlamaConfig(
        vocab_size=len(tokens()), hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=DIM, max_position_embeddings=512,
        rope_theta=10000.0, rms_norm_eps=1e-5, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).bfloat16().float().eval()
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(48)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(DIM)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens()))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens())
    writer.add_token_types([TokenType.CONTROL] * len(SPECIAL) + [TokenType.NORMAL] * 257)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, weight in gguf_weights(model.state_dict()).items():
        writer.add_tensor(name, weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, path


def gguf_weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    found = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
    }
    for layer in range(LAYERS):
        for ours, theirs in names.items():
            weight = state[f"model.layers.{layer}.{ours}.weight"]
            heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(theirs)
            if heads:
                # As llama.cpp's converter alternates the two halves of a head.
                weight = weight.reshape(heads, 2, DIM // 2, HIDDEN).transpose(1, 2).reshape(weight.shape)
            found[f"blk.{layer}.{theirs}.weight"] = weight
    return found


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    convert(source[1], folder)
    return folder


def test_the_converted_model_is_the_model(source, converted):
    again = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32).eval()
    ids = torch.randint(3, 200, (1, 60))
    with torch.inference_mode():
        assert torch.allclose(again(ids).logits, source[0](ids).logits, atol=1e-5)


def test_digits_and_specials_are_tokens_of_their_own(converted):
    tokenizer = AutoTokenizer.from_pretrained(converted)
    ids = tokenizer("<|im_start|>is 4821")["input_ids"]
    assert ids[0] == 1 and [tokenizer.decode([i]) for i in ids[-5:]] == [" ", "4", "8", "2", "1"]
    assert tokenizer.eos_token_id == 2
