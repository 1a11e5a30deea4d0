"""Where a model's chat template puts instructions, in chats of several shapes."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from laprox_sglang.options.values import shown
from laprox_sglang.prefix import INSTRUCTIONS, OTHER_QUESTION, Found, Renderings, find, leading
from laprox_sglang.renderings import packed
from laprox_tools.doctor.finding import Area, Finding

Message = dict[str, Any]

SYSTEM: Message = {
    "role": "system",
    "content": "You keep a log. Answer in one short sentence, and never guess.",
}
LATER: Message = {"role": "system", "content": "From here on, write numbers in words."}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Looks up an entry of the log by its date.",
            "parameters": {
                "type": "object",
                "properties": {"date": {"type": "string", "description": "of the entry"}},
                "required": ["date"],
            },
        },
    }
]
# Mistral's templates want an identifier of nine letters and digits.
CALL = {
    "id": "abcdef123",
    "type": "function",
    "function": {"name": "look_up", "arguments": {"date": "May 1"}},
}
FIRST: list[Message] = [SYSTEM, {"role": "user", "content": "Who came in before dawn?"}]
TURN: list[Message] = [*FIRST, {"role": "assistant", "content": "The Marigold did."}]
AGAIN: Message = {"role": "user", "content": "When did she leave?"}
CHATS: dict[str, list[Message]] = {
    "first turn": FIRST,
    "later turn": [*TURN, AGAIN],
    "result of a tool": [
        *TURN,
        AGAIN,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": CALL["id"], "name": "look_up", "content": "at noon"},
    ],
    "later system message": [*TURN, LATER, AGAIN],
}

area = Area("chat template")


def check_template(folder: Path, template: Path | None) -> Iterator[Finding]:
    """What becomes of instructions with ``--laprox-keep-prefix system``.

    Args:
        folder: of the model, with its tokenizer.
        template: file of another chat template than the model's.
    """
    from transformers import AutoTokenizer

    # It warns of weights that nobody wants here.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        if template is not None:
            tokenizer.chat_template = template.read_text()
    except Exception as error:
        reason = shown(f"{type(error).__name__}: {error}")
        yield area.error("tokenizer", reason, "give --model the folder of a model that has its tokenizer")
        return
    if tokenizer.chat_template is None:
        yield area.ok("none", "the model has no chat template of its own")
        return
    for name, messages in CHATS.items():
        yield check_chat(tokenizer, name, messages)


def check_chat(tokenizer: Any, name: str, messages: list[Message]) -> Finding:
    try:
        found = find_in_chat(tokenizer, messages)
    except Exception as error:
        return area.ok(name, shown(f"the template does not take such a chat: {error}"))
    if found.how == "dense":
        return area.ok(name, f"system message and tools stay dense: the first {found.dense} tokens")
    if found.how == "protected":
        return area.warning(
            name,
            f"{found.inside} tokens of instructions stand behind other messages, {found.dense} before them",
            "they are kept in the view, where they count in the budget; give it room for that",
        )
    reasons = {
        "not_found": f"{found.missing} tokens of instructions are left out, or rendered otherwise than alone",
        "not_rendered": "the template does not render instructions alone, so they are not found",
    }
    fix = "they may be pruned: give --chat-template another one, or --laprox-keep-prefix a number"
    return area.warning(name, reasons[found.how], fix)


def find_in_chat(tokenizer: Any, messages: list[Message]) -> Found:
    """As a server finds them. Raises whatever the template raises at the chat itself."""

    def ids(chat: Sequence[Message], tools: list[dict[str, Any]] | None = TOOLS) -> str:
        text = tokenizer.apply_chat_template(
            list(chat), tools=tools, tokenize=False, add_generation_prompt=True
        )
        return packed(tokenizer.encode(text, add_special_tokens=False))

    def alone(chat: Sequence[Message], tools: list[dict[str, Any]] | None = TOOLS) -> str:
        try:
            return ids([*chat, {"role": "user", "content": OTHER_QUESTION}], tools)
        except Exception:
            return ""

    roles = [message["role"] for message in messages]
    instructions = [message for message in messages if message["role"] in INSTRUCTIONS]
    prompt = ids(messages)
    return find(prompt, Renderings(alone(instructions), alone(messages[: leading(roles)]), alone([], None)))
