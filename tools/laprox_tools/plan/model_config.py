"""A model as its ``config.json`` describes it: the shape of its KV, and the size of its weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laprox_sglang.options.refusals import VISION_MODELS
from laprox_tools import CommandError

# A server on a GPU computes in 16 bits; float32 checkpoints are loaded as such.
WEIGHT_BYTES = 2
FILES = "its files"


@dataclass(frozen=True)
class Model:
    """Names are those of SGLang's ``ModelConfig``, for ``views.memory.needs``.

    Attributes:
        weights: bytes on the GPU.
        weights_from: how they were counted, in words.
    """

    name: str
    num_hidden_layers: int
    num_attention_heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    context_len: int
    weights: int
    weights_from: str

    def get_num_kv_heads(self, tensor_parallel_size: int) -> int:
        return max(1, self.kv_heads // tensor_parallel_size)


def read_model(path: Path, context: int | None = None) -> Model:
    """Reads a ``config.json``, or that of a model's folder.

    Args:
        context: tokens of the longest request, where the server will be told.

    Raises:
        CommandError: there is none, or it describes a model that LaProx does not serve.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text())
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror}; give a model's folder or its config.json") from None
    except ValueError as error:
        raise CommandError(f"{file} is not JSON: {error}") from None
    sees = isinstance(config, dict) and (config.get("architectures") or [None])[0] in VISION_MODELS
    if sees:
        config = reading_part(config)
    if not isinstance(config, dict) or "num_attention_heads" not in config:
        raise CommandError(f"{file} describes no text model: it has no num_attention_heads")
    if (fault := fault_of(config)) is not None:
        raise CommandError(f"{file}: the model has {fault}, which LaProx does not serve")
    try:
        heads = int(config["num_attention_heads"])
        weights, source = weights_of(config, checkpoint_bytes(file.parent))
        return Model(
            name=file.resolve().parent.name,
            num_hidden_layers=int(config["num_hidden_layers"]),
            num_attention_heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=head_dim(config),
            hidden_size=int(config["hidden_size"]),
            context_len=context or context_of(config),
            weights=weights,
            weights_from=f"{source}, without what sees" if sees and source != FILES else source,
        )
    except KeyError as error:
        raise CommandError(f"{file} has no {error.args[0]}") from None
    except CommandError:
        raise
    except (OSError, TypeError, ValueError, AttributeError) as error:
        raise CommandError(f"{file} is not as a model's: {error}") from None


def reading_part(config: dict[str, Any]) -> dict[str, Any]:
    """The language model of one that sees, as a configuration of its own; it may be a part of the other."""
    reads = config | config.get("text_config", {})
    return {name: value for name, value in reads.items() if name != "vision_config"}


def checkpoint_bytes(folder: Path) -> int:
    """Of the weights; beside them a checkpoint may have all of them again in another format, as Mistral's."""
    files = [*folder.glob("model*.safetensors")] or [*folder.glob("*.safetensors")]
    return sum(file.stat().st_size for file in files)


def fault_of(config: dict[str, Any]) -> str | None:
    """What LaProx does not serve, as far as a configuration tells; a server's start knows more."""
    layers = set(config.get("layer_types") or ())
    faults = {
        "multi-head latent attention": bool(config.get("kv_lora_rank")),
        "sliding-window or linear-attention layers": bool(layers - {"full_attention"}),
        "sliding-window attention": bool(config.get("sliding_window"))
        and not layers
        and config.get("use_sliding_window", True),
        "an encoder": bool(config.get("is_encoder_decoder")),
        "image or audio input": "vision_config" in config or "audio_config" in config,
    }
    return next((fault for fault, present in faults.items() if present), None)


def head_dim(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def context_of(config: dict[str, Any]) -> int:
    """As SGLang reads it: RoPE scaling counts where the configuration gives the length before it."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    scaled = "original_max_position_embeddings" not in scaling and scaling.get("rope_type") != "llama3"
    return int(config["max_position_embeddings"] * (scaling.get("factor", 1) if scaled else 1))


def weights_of(config: dict[str, Any], files: int) -> tuple[int, str]:
    """Bytes of the weights on the GPU, and how they were counted.

    Args:
        files: bytes of the checkpoint's files beside the configuration; 0 if there are none.
    """
    single = "float32" in (config.get("torch_dtype"), config.get("dtype"))
    if files:
        return files * WEIGHT_BYTES // 4 if single else files, FILES
    count = parameters(config)
    quantization = config.get("quantization_config")
    bits = 8 * WEIGHT_BYTES if quantization is None else quantized_bits(quantization)
    return (
        count * bits // 8,
        f"estimated from its shapes, {count / 1e9:.2f} billion parameters of {bits} bits",
    )


def quantized_bits(quantization: dict[str, Any]) -> int:
    if "bits" in quantization:
        return int(quantization["bits"])
    if quantization.get("quant_method") == "fp8":
        return 8
    raise CommandError("its weights are quantized: give the folder that has them to count")


def parameters(config: dict[str, Any]) -> int:
    """Of a decoder with a gated MLP, or experts of that kind; norms, biases and routers are left out."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    heads, dim = config["num_attention_heads"], head_dim(config)
    kv_heads = config.get("num_key_value_heads") or heads
    attention = 2 * hidden * dim * (heads + kv_heads)
    experts = config.get("num_local_experts") or config.get("num_experts") or 0
    inner = experts * (config.get("moe_intermediate_size") or config["intermediate_size"])
    mlp = 3 * hidden * (inner + (config.get("shared_expert_intermediate_size") or 0))
    if not experts:
        mlp = 3 * hidden * config["intermediate_size"]
    embeddings = config["vocab_size"] * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return int(layers * (attention + mlp) + embeddings)
