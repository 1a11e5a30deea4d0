"""From what stands in a document, and what is asked of it, to the token ids of a chat.

A question is asked in a chat, and the answer is begun in the model's name: up to what must be looked up, the
blank before a number included, which is a token of its own.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.quality.tasks.sentences import Shelf
from benchmarks.quality.tasks.task import Case, Earlier, TaskError, Wanted

Message = dict[str, Any]
# The first token of an answer comes out of the prefill, whatever is kept: one more must be looked up.
LEAST_ANSWER = 2
# Lines that are too long for what is left of a document, before it is called full.
TRIES = 32
# Lines that meet may have a few tokens more than apart.
MARGIN = 8


@dataclass(frozen=True)
class Question:
    """
    Attributes:
        text: of the user.
        begun: how the model's answer begins.
        answer: what it must say next.
        ended: how its answer ends; need not be said, as a quotation mark and a full stop are one token.
    """

    kind: str
    text: str
    begun: str
    answer: str
    ended: str = "."


def what(kind: str, thing: str, answer: str, verb: str = "is", more: str = "") -> Question:
    """What the thing is, or are."""
    return Question(kind, f"What {verb} the {thing}{more}?", f"The {thing} {verb} ", answer)


def prose(lines: Sequence[str]) -> list[Message]:
    return [{"role": "user", "content": " ".join(lines)}]


@dataclass(frozen=True)
class Draft:
    """A document to be.

    Attributes:
        pieces: what must stand in it, anywhere.
        questions: about it, of which one is asked, and another may come before it.
        filler: what else stands in it, until it is full; None is prose.
        ordered: the pieces stand in it in this order.
        messages: of its lines. A last one of the user's goes on with the question.
        between: what stands between two lines there.
        asked: the first questions, so many, are asked; the others only come before one.
    """

    pieces: list[str]
    questions: list[Question]
    filler: Iterable[str] | None = None
    ordered: bool = False
    messages: Callable[[Sequence[str]], list[Message]] = prose
    between: str = " "
    asked: int | None = None


class Chat:
    """Conversations for one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def opened(self, before: Sequence[Message], *questions: Question) -> str:
        """A conversation that asks these questions one after the other, up to the last answer.

        Raises:
            TaskError: the model's chat template does not take it.
        """
        messages = list(before)
        for question in questions:
            text = question.text
            if messages and messages[-1]["role"] == "user":
                text = f"{messages.pop()['content']}\n\n{text}"
            said = question.begun + question.answer + question.ended
            messages += [{"role": "user", "content": text}, {"role": "assistant", "content": said}]
        try:
            opened: str = self._tokenizer.apply_chat_template(
                messages[:-1], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:
            # Whatever the templates of others raise.
            raise TaskError(f"the chat template of this model refuses a conversation: {error}") from error
        return opened + questions[-1].begun

    def case(self, before: Sequence[Message], question: Question, other: Question) -> Case:
        """A question, which may also come after another one."""
        prompt, answer = self.split(text := self.opened(before, question), question.answer)
        asked, answered = self.split(told := self.opened(before, other), other.answer)
        rest = self.opened(before, other, question)[len(told + other.answer) :]
        bridge, _ = self.split(rest, question.answer)
        start = text.rindex(question.text)
        context = len(self.ids(text[:start]))
        results = [message["content"] for message in before if message["role"] == "tool"]
        read = len(self.ids(text[: text.rindex(results[-1]) + len(results[-1])])) if results else context
        phases = read, len(self.ids(text[: start + len(question.text)]))
        earlier = Earlier(asked, answered, bridge)
        return Case(prompt, answer, question.kind, question.text, context, earlier, phases)

    def split(self, opened: str, answer: str) -> tuple[list[int], list[int]]:
        """A token that reaches from the prompt into the answer belongs to the answer."""
        ids, whole = self.ids(opened), self.ids(opened + answer)
        alike = next((i for i, (a, b) in enumerate(zip(ids, whole, strict=False)) if a != b), len(ids))
        alike = min(alike, len(whole) - LEAST_ANSWER)
        return whole[:alike], whole[alike:]


def cases(draw: Callable[[random.Random], Draft], wanted: Wanted) -> list[Case]:
    """One question a document, all of a draft's in turn; the same wish gives the same ones.

    Raises:
        TaskError: what must stand in a document leaves no room for it.
    """
    chat, seed = Chat(wanted.tokenizer), wanted.seed + wanted.length
    chance = random.Random(seed)
    shelf = Shelf(lambda text: len(chat.ids(" " + text)), seed)
    found = []
    for index in range(wanted.count):
        draft = draw(chance)
        questions, asked = draft.questions, draft.asked or len(draft.questions)
        around = max(len(chat.ids(chat.opened(draft.messages([]), question))) for question in questions)
        room = wanted.length - around
        room -= sum(len(chat.ids(draft.between + piece)) for piece in draft.pieces)
        if room < 0:
            raise TaskError(f"{wanted.length} tokens are too few for a document of this task")
        lines = shelf.take(room) if draft.filler is None else filled(chat, draft.filler, draft.between, room)
        messages = draft.messages(placed(draft, lines, chance))
        place = index % asked
        other = questions[(place + max(1, len(questions) // 2)) % len(questions)]
        found.append(chat.case(messages, questions[place], other))
    return found


def filled(chat: Chat, filler: Iterable[str], between: str, room: int) -> list[str]:
    """Lines while they fit, with what stands between them."""
    room -= MARGIN
    lines, missed = [], 0
    for line in filler:
        left = room - len(chat.ids(between + line))
        if left >= 0:
            lines.append(line)
            room = left
        elif (missed := missed + 1) == TRIES:
            break
    return lines


def placed(draft: Draft, lines: list[str], chance: random.Random) -> list[str]:
    """The lines with the pieces among them."""
    pieces = list(draft.pieces)
    if not draft.ordered:
        chance.shuffle(pieces)
    for piece in pieces:
        lines.insert(chance.randint(0, len(lines)), piece)
    if draft.ordered:
        order = iter(pieces)
        lines = [next(order) if line in draft.pieces else line for line in lines]
    return lines
