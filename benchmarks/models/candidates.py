"""The models that are tried: tiny configurations of Hugging Face's, a line a class."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Of all of them, unless they say otherwise: two layers, two query heads to each KV head.
SHAPE = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# For classes whose heads are of another size than hidden size / heads unless they are told.
HEADS = {"head_dim": 64}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 128}
FP8 = {"quantization": "fp8", "dtype": "bfloat16"}


@dataclass(frozen=True)
class Candidate:
    """
    Attributes:
        config: name of the configuration's class in ``transformers``, without "Config".
        shape: what it has beside ``SHAPE``, or in its place.
        flags: arguments of the server beside those of all.
    """

    config: str
    shape: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, Any] = field(default_factory=dict)


CANDIDATES = {
    "Llama": Candidate("Llama"),
    "Llama, group 12": Candidate("Llama", {"num_attention_heads": 24, "hidden_size": 384, **HEADS}),
    "Llama, group 16": Candidate("Llama", {"num_attention_heads": 32, **HEADS}),
    "Mistral": Candidate("Mistral", {"sliding_window": None}),
    "Mixtral": Candidate("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "Qwen2": Candidate("Qwen2"),
    "Qwen2-MoE": Candidate("Qwen2Moe", {"num_experts": 8, "shared_expert_intermediate_size": 128, **EXPERTS}),
    "Qwen3": Candidate("Qwen3", HEADS),
    "Qwen3-MoE": Candidate("Qwen3Moe", {"num_experts": 8, **EXPERTS, **HEADS}),
    "Gemma": Candidate("Gemma", HEADS),
    "Phi-2": Candidate("Phi"),
    "Phi-3": Candidate("Phi3"),
    "Phi-3.5-MoE": Candidate("Phimoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "OLMo": Candidate("Olmo"),
    "OLMo 2": Candidate("Olmo2"),
    "OLMoE": Candidate("Olmoe", {"num_experts": 8, "num_experts_per_tok": 2}),
    "GLM-4": Candidate("Glm4", HEADS),
    "GLM-4-MoE": Candidate(
        "Glm4Moe",
        {
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "partial_rotary_factor": 0.5,
            "use_qk_norm": True,
            **EXPERTS,
            **HEADS,
        },
    ),
    "Apertus": Candidate("Apertus"),
    "StableLM": Candidate("StableLm"),
    "Cohere Command R": Candidate("Cohere"),
    "Granite": Candidate("Granite", {"attention_multiplier": 0.1, "logits_scaling": 4.0}),
    "Granite-MoE": Candidate(
        "GraniteMoe", {"attention_multiplier": 0.1, "num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "Starcoder2": Candidate("Starcoder2", {"sliding_window": None}),
    "EXAONE 4": Candidate("Exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 2}),
    "Arcee": Candidate("Arcee"),
    "Hunyuan": Candidate("HunYuanDenseV1", HEADS),
    "MiniMax-M2": Candidate(
        "MiniMaxM2", {"num_local_experts": 8, "num_experts_per_tok": 2, "rotary_dim": 32, **HEADS}
    ),
    "ERNIE 4.5": Candidate("Ernie4_5", HEADS),
    "ERNIE 4.5-MoE": Candidate(
        "Ernie4_5_Moe",
        {"moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 128, "moe_num_shared_experts": 1},
    ),
    "SmolLM3": Candidate("SmolLM3"),
    "Seed-OSS": Candidate("SeedOss", HEADS),
    "Nemotron": Candidate("Nemotron", HEADS),
    "GPT-NeoX": Candidate("GPTNeoX"),
    "Falcon": Candidate("Falcon"),
    "Llama, fp8 weights": Candidate("Llama", flags=FP8),
    "Gemma 2": Candidate("Gemma2", {"hidden_act": "gelu_pytorch_tanh", **HEADS}),
    "Gemma 3": Candidate("Gemma3Text", {"sliding_window": 64, **HEADS}),
    "OLMo 3": Candidate("Olmo3", {"sliding_window": 64}),
    "Cohere Command R7B": Candidate("Cohere2", {"sliding_window": 64}),
    "gpt-oss": Candidate("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2, **HEADS}),
    "Llama 4": Candidate("Llama4Text", {"num_local_experts": 4, "intermediate_size_mlp": 512, **HEADS}),
    "Qwen3-Next": Candidate(
        "Qwen3Next", {"num_experts": 8, "layer_types": ["linear_attention", "full_attention"], **EXPERTS}
    ),
    "Qwen3.5": Candidate("Qwen3_5Text", {"layer_types": ["linear_attention", "full_attention"]}),
    "Falcon-H1": Candidate("FalconH1"),
    "Nemotron-H": Candidate("NemotronH"),
    "LFM2": Candidate("Lfm2"),
    "DeepSeek-V2": Candidate(
        "DeepseekV2",
        {"n_routed_experts": 4, "kv_lora_rank": 64, "q_lora_rank": 64, "num_key_value_heads": 4, **EXPERTS},
    ),
    "DeepSeek-V3": Candidate(
        "DeepseekV3",
        {"n_routed_experts": 8, "kv_lora_rank": 64, "q_lora_rank": 64, "num_key_value_heads": 4, **EXPERTS},
    ),
}
