"""Chats of several turns, templates built like those of well-known models, and a tokenizer for both."""

import json
import re
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from laprox_sglang.options.server import Config

TEMPLATES = Path(__file__).parent / "templates"
# As Llama 3 and most since split text, before bytes are merged.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MARKS = re.compile(r"<\|[\w ]+\|>|</?s>|\[/?[A-Z_]+\]|\[gMASK\]|<sop>|</?think>|</?tool_(?:call|response)>")
Message = dict[str, Any]

SYSTEM = (
    "You are the keeper of a harbour log. Answer in one short sentence, name the ship first, and never "
    "guess: if the log is silent, say that it is silent.\nDates are those of the old calendar.\n"
)
LATER = (
    "From here on, write every number in words!",
    "The harbour master reads along: no gossip.",
    "Close with the bearing of the lighthouse:",
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Looks up {what} by the name of a ship.",
            "parameters": {
                "type": "object",
                "properties": {"ship": {"type": "string", "description": f"whose {what} to look up"}},
                "required": ["ship"],
            },
        },
    }
    for name, what in (("cargo_of", "the cargo"), ("berth_of", "the berth"), ("crew_of", "the crew list"))
]
QUESTIONS = (
    "Which ship came in before dawn?",
    "\nAnd what did she carry, do you know?",
    "Who saw her leave?",
    "Was there another one, that week or the next?",
)
ANSWERS = (
    "<think>\nDawn was at six.\n</think>\n\nThe Marigold came in at five.",
    "Marigold carried salt.",
    "The pilot saw her leave.",
    "The Heron, two days later.",
)


def chat(turns: int, system: bool = True, later: bool = False, calls: bool = False) -> list[Message]:
    """A chat whose last question is its ``turns``-th.

    Args:
        later: before every question but the first stands another system message.
        calls: the last question was answered by a call of a tool, whose result ends the chat.
    """
    messages: list[Message] = [{"role": "system", "content": SYSTEM}] if system else []
    for turn in range(turns):
        if turn:
            messages.append({"role": "assistant", "content": ANSWERS[turn - 1]})
        if turn and later:
            messages.append({"role": "system", "content": LATER[turn - 1]})
        messages.append({"role": "user", "content": QUESTIONS[turn]})
    if calls:
        function = {"name": "cargo_of", "arguments": json.dumps({"ship": "Marigold"})}
        call = {"id": "abcdef123", "type": "function", "function": function}
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": "abcdef123", "content": "salt, 40 tons"})
    return messages


@lru_cache
def tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Merges bytes as large vocabularies do: a mark of a template is one token, text runs together."""
    texts = [path.read_text() for path in sorted(TEMPLATES.glob("*.jinja"))]
    marks = sorted({mark for text in texts for mark in MARKS.findall(text)})
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1200, initial_alphabet=alphabet, special_tokens=marks, show_progress=False
    )
    bpe.train_from_iterator([*texts, SYSTEM, *LATER, *QUESTIONS, *ANSWERS, json.dumps(TOOLS)], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=bpe)
    made.chat_template = (TEMPLATES / f"{template}.jinja").read_text()
    return made


class Serving:
    """What ``process_messages`` needs of SGLang's serving class, around a tokenizer's own template.

    Attributes:
        rendered: how often the template was.
    """

    def __init__(self, tokenizer: Any, config: Config | None = None, context: int = 100_000) -> None:
        self.tokenizer, self.rendered = tokenizer, 0
        self.tokenizer_manager = SimpleNamespace(
            server_args=SimpleNamespace(_laprox=config or Config()),
            preferred_sampling_params=None,
            tokenizer=tokenizer,
            context_len=context,
            allow_auto_truncate=False,
        )

    def process(self, request: Any, is_multimodal: bool, **_: Any) -> Any:
        self.rendered += 1
        ids = self.tokenizer.encode(text_of(self.tokenizer, request), add_special_tokens=False)
        return SimpleNamespace(prompt="", prompt_ids=ids)


def text_of(tokenizer: Any, request: Any) -> str:
    """What the template makes of a request, as SGLang asks it."""
    messages = [message.model_dump() for message in request.messages]
    tools = [tool.model_dump() for tool in request.tools or []] or None
    more = {"reasoning_effort": request.reasoning_effort} if request.reasoning_effort else {}
    return str(
        tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=True, **more
        )
    )
