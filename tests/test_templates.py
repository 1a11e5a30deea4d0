"""Templates built like those of well-known models: no instruction of any turn is pruned without a word."""

from itertools import product
from typing import Any

import pytest
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest

from chats import LATER, SYSTEM, TEMPLATES, TOOLS, Serving, chat, text_of, tokenizer
from laprox_patches.tokenizer.chat import process_messages
from laprox_tools.doctor.template import CHATS, check_template

NAMES = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
TURNS = (1, 2, 3, 4)


def words(tools: bool, later: bool, calls: bool) -> dict[str, tuple[str, ...]]:
    """By template, what becomes of the instructions of each turn; "" where the template refuses the chat."""
    dense = ("dense",) * 4
    from_the_second = ("dense", *("protected",) * 3)
    in_place = from_the_second if later else dense
    return {
        "command_r": ("protected",) * 4 if tools else in_place,
        "deepseek_r1": dense,
        "glm4": in_place,
        # Leaves later system messages out of every prompt, so there is nothing of them to keep.
        "gpt_oss": dense,
        "llama3": in_place,
        # Behind a tool's result it leaves the system message out.
        "mistral": ("not_found",) * 4 if calls else from_the_second,
        "qwen3": in_place,
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("tools", "later", "calls"), product((False, True), repeat=3))
def test_instructions_of_every_turn(name, tools, later, calls, caplog):
    serving = Serving(tokenizer(name))
    for turns, how in zip(TURNS, words(tools, later, calls)[name], strict=True):
        messages = chat(turns, later=later, calls=calls)
        request = ChatCompletionRequest(model="m", messages=messages, tools=TOOLS if tools else None)
        if name == "mistral" and later and turns > 1:
            with pytest.raises(Exception, match="Only user and assistant"):
                process_messages(Serving.process, serving, request, False)
            continue
        prompt = process_messages(Serving.process, serving, request, False).prompt_ids
        assert prompt.found.how == how, (turns, prompt.found)
        covered = {*range(prompt.found.dense), *(i for a, b in prompt.found.spans for i in range(a, b))}
        needed = tokens_of_instructions(
            serving.tokenizer, request, prompt, [SYSTEM, *LATER[: later * (turns - 1)]]
        )
        assert needed <= covered, serving.tokenizer.decode([prompt[i] for i in sorted(needed - covered)])
        # Nothing of the conversation but marks around instructions, and what its tokens were merged with.
        asked = tokens_of(
            serving.tokenizer,
            request,
            prompt,
            [str(m["content"]) for m in messages if m["role"] in ("user", "tool")],
        )
        assert len(asked & covered) <= 8, serving.tokenizer.decode(
            [prompt[i] for i in sorted(asked & covered)]
        )
    said = [record.getMessage() for record in caplog.records]
    kinds = {*words(tools, later, calls)[name][: 1 if name == "mistral" and later else 4]} - {"dense"}
    assert len(said) == len(kinds), said


def tokens_of_instructions(tokenizer: Any, request: Any, prompt: list[int], texts: list[str]) -> set[int]:
    """Indices of all tokens that hold any part of an instruction that is in the prompt."""
    functions = [tool.function for tool in request.tools or []]
    needed = tokens_of(tokenizer, request, prompt, texts)
    for function in functions:
        found = tokens_of(tokenizer, request, prompt, [function.name], first=True)
        found |= tokens_of(tokenizer, request, prompt, [function.description], first=True)
        # Whatever stands between its name and its description belongs to the tool, too.
        needed |= {*range(min(found), max(found) + 1)}
    return needed


def tokens_of(
    tokenizer: Any, request: Any, prompt: list[int], texts: list[str], first: bool = False
) -> set[int]:
    """Indices of all tokens that hold any part of ``texts``, wherever these stand in the prompt's text.

    Args:
        first: a text may stand elsewhere as well, as a tool's name does in its calls.
    """
    whole = text_of(tokenizer, request)
    encoded = tokenizer(whole, return_offsets_mapping=True, add_special_tokens=False)
    assert encoded["input_ids"] == list(prompt)
    indices = set()
    for text in texts:
        # Templates may strip.
        begin = whole.find(text.strip())
        assert first or whole.count(text.strip()) <= 1
        if begin >= 0:
            end = begin + len(text.strip())
            offsets = enumerate(encoded["offset_mapping"])
            indices |= {i for i, (a, b) in offsets if a < end and b > begin}
    return indices


def test_the_texts_are_in_the_prompts():
    """Of which the others look for the tokens: a typing error here would make them see nothing."""
    for name in NAMES:
        serving = Serving(tokenizer(name))
        request = ChatCompletionRequest(model="m", messages=chat(1), tools=TOOLS)
        prompt = process_messages(Serving.process, serving, request, False).prompt_ids
        assert len(tokens_of_instructions(serving.tokenizer, request, prompt, [SYSTEM])) > 80


@pytest.mark.parametrize("name", ["mistral", "qwen3", "gpt_oss"])
def test_instructions_that_come_without_a_first_system_message(name):
    """gpt-oss takes a later message for its developer message when it is asked for that alone."""
    serving = Serving(tokenizer(name))
    messages = chat(3, system=False, later=name != "mistral")
    request = ChatCompletionRequest(model="m", messages=messages, tools=TOOLS)
    prompt = process_messages(Serving.process, serving, request, False).prompt_ids
    covered = {*range(prompt.found.dense), *(i for a, b in prompt.found.spans for i in range(a, b))}
    assert tokens_of_instructions(serving.tokenizer, request, prompt, [*LATER[:2]]) <= covered
    assert prompt.found.how == ("not_found" if name == "gpt_oss" else "protected")


@pytest.mark.parametrize("name", NAMES)
def test_doctor_says_where_a_template_puts_instructions(name, tmp_path):
    tokenizer(name).save_pretrained(tmp_path)
    findings = {finding.name: finding for finding in check_template(tmp_path, None)}
    assert list(findings) == list(CHATS)
    told = {
        "first turn": words(True, False, False)[name][0],
        "later turn": words(True, False, False)[name][1],
        "result of a tool": words(True, False, True)[name][1],
        "later system message": words(True, True, False)[name][1],
    }
    for chat_name, how in told.items():
        finding = findings[chat_name]
        refused = name == "mistral" and chat_name == "later system message"
        assert (finding.status == "ok") == (refused or how == "dense") == (not finding.fix), finding
        assert how != "not_found" or "left out" in finding.reason
    other = TEMPLATES / "deepseek_r1.jinja"
    assert {finding.status for finding in check_template(tmp_path, other)} == {"ok"}


def test_doctor_without_a_template_or_a_tokenizer(tmp_path):
    (finding,) = check_template(tmp_path, None)
    assert finding.status == "error" and "--model" in finding.fix and "\n" not in finding.reason
    bare = tokenizer("qwen3").__class__(tokenizer_object=tokenizer("qwen3").backend_tokenizer)
    bare.save_pretrained(tmp_path)
    (finding,) = check_template(tmp_path, None)
    assert finding.status == "ok" and "no chat template" in finding.reason
