"""Random models that see, too small to know anything, and what Hugging Face makes of the same weights."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from benchmarks.quality.methods.reader import Model, Prefix

TEMPLATE = Path(__file__).parent / "models" / "qwen_vl.jinja"
WORDS = [f"w{i}" for i in range(100)]
MARKS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
]
ROLES = ["<unk>", "\n", "system", "user", "assistant"]
# With the space before them: what is decoded must be encoded as the same tokens again.
IDS = {word: i for i, word in enumerate([*ROLES, *WORDS, *(f" {word}" for word in WORDS), *MARKS])}
VOCABULARY = 256
LAYERS, HIDDEN, HEADS, KV_HEADS = 3, 128, 4, 2
# Large enough that what a token attends to decides what follows it.
SPREAD = 0.15
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 4096,
    "initializer_range": SPREAD,
    "eos_token_id": IDS["<|im_end|>"],
}
TOKENS = {
    "image_token_id": IDS["<|image_pad|>"],
    "video_token_id": IDS["<|video_pad|>"],
    "vision_start_token_id": IDS["<|vision_start|>"],
    "vision_end_token_id": IDS["<|vision_end|>"],
}


def qwen2_5_vl() -> tuple[Any, dict[str, Any]]:
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10_000.0}
    vision = {
        "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": HIDDEN,
        "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1], "initializer_range": SPREAD,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(text_config=TEXT | {"rope_scaling": rope}, vision_config=vision, **TOKENS)
    return Qwen2_5_VLForConditionalGeneration(config), {
        "processor_class": "Qwen2_5_VLProcessor",
        "patch_size": 14,
    }


def qwen3_vl() -> tuple[Any, dict[str, Any]]:
    rope = {
        "rope_type": "default",
        "mrope_section": [6, 5, 5],
        "rope_theta": 10_000.0,
        "mrope_interleaved": True,
    }
    vision = {
        "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": HIDDEN,
        "patch_size": 16, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64,
        "initializer_range": SPREAD,
    }  # fmt: skip
    text = TEXT | {"rope_scaling": rope, "head_dim": HIDDEN // HEADS}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **TOKENS)
    return Qwen3VLForConditionalGeneration(config), {"processor_class": "Qwen3VLProcessor", "patch_size": 16}


KINDS = {"qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl}


def make_model(kind: str, folder: Path, seed: int) -> None:
    """Writes a model of random weights, its tokenizer of words, and what its processor reads."""
    torch.manual_seed(seed)
    model, processor = KINDS[kind]()
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n| ?[^ \n]+"), "isolated")
    words.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=MARKS,
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE.read_text()
    tokenizer.save_pretrained(folder)
    about = {
        "image_processor_type": "Qwen2VLImageProcessor", "temporal_patch_size": 2, "merge_size": 2,
        "min_pixels": 56 * 56, "max_pixels": 448 * 448, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(about | processor))


class SeeingModel(Model):
    """What Hugging Face makes of such a model, over a chosen part of a prompt's KV."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._processor = AutoImageProcessor.from_pretrained(path)
        self._seen: dict[str, torch.Tensor] = {}
        self._behind = 0

    def load(self, path: str | Path, dtype: torch.dtype) -> Any:
        # The tower attends to pictures as it likes.
        attention = {"text_config": "laprox_quality", "vision_config": "sdpa"}
        return AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, attn_implementation=attention)

    def see(self, text: str, pictures: list[Image.Image]) -> Prefix:
        """Computes a prompt, with a mark for each picture."""
        self._seen = dict(self._processor(pictures, return_tensors="pt")) if pictures else {}
        sizes = iter(self._seen["image_grid_thw"].prod(-1).tolist()) if pictures else iter(())
        ids: list[int] = []
        for token in self._tokenizer.encode(text):
            # Four patches make a token.
            ids += [token] * (next(sizes) // 4 if token == IDS["<|image_pad|>"] else 1)
        return self.prefill(ids)

    def _placed(self, ids: torch.Tensor, start: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if start:
            # A picture has more tokens than positions.
            return (torch.arange(start, start + ids.shape[1]) + self._behind).expand(3, len(ids), -1), {}
        kinds = (ids == IDS["<|image_pad|>"]).int()
        positions, behind = self._model.model.get_rope_index(ids, kinds, self._seen.get("image_grid_thw"))
        self._behind = int(behind)
        return positions, self._seen
