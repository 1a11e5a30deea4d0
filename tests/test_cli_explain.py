"""``laprox explain``: texts of tokens, what was kept of them, and pages and pictures of it."""

import base64
import builtins
import hashlib
import io
import itertools
import json
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from fake_http import fake_http
from laprox_sglang.options.request import Options
from laprox_sglang.options.server import Config
from laprox_sglang.report.positions import encode
from laprox_sglang.views.plan import REASONS, make_plan
from laprox_tools import CommandError
from laprox_tools.__main__ import main
from laprox_tools.explain import terminal
from laprox_tools.explain.color_level import LEVELS, level
from laprox_tools.explain.kept import WHY_WHOLE, Kept, kept_of
from laprox_tools.explain.page import page
from laprox_tools.explain.png import CHARACTERS, MOST_LINES, lines
from laprox_tools.explain.token_text import LONGEST, Piece, pieces_of
from laprox_tools.http_client import DETOKENIZED_AT_ONCE, ServerClient
from laprox_tools.needle import MODEL_PATH

LAYERS, HEADS = 3, 2
TEXT = 'the <b>brown</b> fox said "</script><script>alert(1)</script>" & wörld 日本語 🎉\n$a_1$ end'


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    """One whose tokens may be parts of characters, as most models have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 9, trainer)
    return tokenizer


def decode_with(tokenizer):
    return lambda lists: [tokenizer.decode(ids, skip_special_tokens=False) for ids in lists]


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40))
def test_pieces_are_the_text_whatever_the_text(byte_level, text):
    ids = byte_level.encode(text).ids
    pieces = pieces_of(ids, decode_with(byte_level))
    assert "".join(piece.text for piece in pieces) == text
    assert [i for piece in pieces for i in range(piece.start, piece.end)] == list(range(len(ids)))
    assert all(1 <= piece.end - piece.start <= LONGEST for piece in pieces)


def test_characters_are_not_broken(byte_level):
    ids = byte_level.encode("a日本🎉b").ids
    pieces = pieces_of(ids, decode_with(byte_level))
    assert [piece.text for piece in pieces] == ["a", "日", "本", "🎉", "b"]
    assert [piece.end - piece.start for piece in pieces] == [1, 3, 3, 4, 1]


def test_bytes_that_are_no_text_break_nothing(byte_level):
    """A prompt may be any token ids."""
    draw = random.Random(5)
    for _ in range(50):
        ids = [draw.randrange(byte_level.get_vocab_size()) for _ in range(60)]
        pieces = pieces_of(ids, decode_with(byte_level))
        assert pieces[0].start == 0 and pieces[-1].end == len(ids)
        assert all(a.end == b.start for a, b in itertools.pairwise(pieces))


def test_blanks_between_words_belong_to_them():
    tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)
    pieces = pieces_of([1, 3, 4, 9], decode_with(tokenizer))
    assert [piece.text for piece in pieces] == ["<s>", " the", " of", " what"]
    assert pieces_of([], decode_with(tokenizer)) == []


def reply_of(tokens: int, dense: int = 0, **changes):
    """One head keeps every second position, the other the last one, in all layers but the first: all."""
    rest = list(range(dense, tokens))
    positions = [[rest, rest], *([[rest[::2], rest[-1:]]] * (LAYERS - 1))]
    cells = [head for layer in positions for head in layer]
    packed = {
        "heads": 2,
        "offsets": [0, *itertools.accumulate(map(len, cells))],
        "int32": numpy.array([p for cell in cells for p in cell], numpy.int32).tobytes(),
    }
    facts = {
        "pruned": True, "reason": None, "dense_tokens": dense, **encode({"kept_positions": packed}),
        "budget_effective": 0.5, "slots_before": tokens - dense, "slots_after": (tokens - dense) // 2,
    }  # fmt: skip
    return {"text": " <i>yes</i>", "meta_info": {"laprox": [None, facts | changes]}}


def made(text=TEXT, dense=0) -> Kept:
    pieces = [Piece(i, i + 1, word) for i, word in enumerate(re.findall(r"\s?\S+|\s", text))]
    return kept_of("a<model>", reply_of(len(pieces), dense), pieces, len(pieces))


def test_shares_are_of_heads():
    kept = made("a b c d e")
    assert kept.share.tolist() == [[1.0] * 5, [0.5, 0, 0.5, 0, 1.0], [0.5, 0, 0.5, 0, 1.0]]
    assert kept.of_piece(kept.pieces[0]) == pytest.approx(2 / 3)
    assert kept.columns(2).tolist() == [[1, 1], [0.5, 1], [0.5, 1]]
    assert kept.columns(100).shape == (3, 5)
    dense = made("a b c d e", dense=2)
    assert dense.share[:, :2].min() == 1 and ", 2 dense" in dense.headline


@given(st.floats(0, 1))
def test_whatever_is_kept_is_seen(share):
    assert (level(share) > 0) == (share > 0) and 0 <= level(share) <= LEVELS


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = {"text": "", "answer": "", "style": "", "script": "", "data": ""}
        self._in: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes) -> None:
        named = dict(attributes)
        self.tags.append((tag, named))
        if tag not in ("meta", "br"):
            self._in.append(named.get("id") if named.get("id") in self.text else tag)

    def handle_endtag(self, tag) -> None:
        self._in.pop()

    def handle_data(self, data) -> None:
        place = next((name for name in reversed(self._in) if name in self.text), None)
        if place:
            self.text[place] += data


def test_a_prompt_is_only_text_in_the_page():
    kept = made(dense=3)
    seen = Page(page(kept))
    assert seen.text["text"] == TEXT and seen.text["answer"] == " <i>yes</i>"
    tags = [tag for tag, _ in seen.tags]
    # Ours, and none of the prompt's.
    assert tags.count("script") == 2 and tags.count("b") == 1
    spans = [named["class"] for tag, named in seen.tags if tag == "i" and named["class"]]
    assert sum(name.endswith(" d") for name in spans) == 3
    data = json.loads(seen.text["data"])
    share = numpy.frombuffer(base64.b64decode(data["share"]), numpy.uint8).reshape(LAYERS, -1)
    assert (share == numpy.round(kept.share * 255)).all()
    assert data["starts"] == [piece.start for piece in kept.pieces] and data["dense"] == 3


def test_the_page_runs_its_own_script_and_fetches_nothing():
    text = page(made())
    seen = Page(text)
    policy = next(named["content"] for tag, named in seen.tags if named.get("http-equiv"))
    assert policy.startswith("default-src 'none'; ")
    for place in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(seen.text[place].encode()).digest()).decode()
        assert f"{place}-src 'sha256-{digest}'" in policy
    attributes = {name for _, named in seen.tags for name in named}
    assert not attributes & {"src", "href", "style", "onload", "onclick"}
    assert "http" not in text.replace("http-equiv", "")
    assert "prefers-color-scheme: dark" in text


def test_a_text_longer_than_the_picture_says_so():
    rows, whole = lines(made("word " * 10))
    assert whole and len(rows) == 1
    rows, whole = lines(made("word " * 40 * MOST_LINES))
    assert not whole and len(rows) == MOST_LINES
    assert all(column + len(text) <= CHARACTERS for row in rows for column, text, _ in row)
    rows, whole = lines(made("begin " + "x" * 1000 + "\nend"))
    assert whole and rows[-1][-1][1] == "end"
    # One token that is longer than a line: nothing lies upon another, and nothing is lost.
    assert "".join(text for row in rows for _, text, _ in row).count("x") == 1000
    for row in rows:
        ends = [0, *(column + len(text) for column, text, _ in row)]
        assert (
            all(column >= end for (column, *_), end in zip(row, ends, strict=False))
            and ends[-1] <= CHARACTERS
        )


@pytest.fixture
def server(byte_level):
    """What a server with this tokenizer answers; ``asked`` is the last body of /generate."""
    state = SimpleNamespace(asked=None, template=True, changes={}, lists=0)

    def tokenize(body):
        if "messages" not in body:
            return 200, {"tokens": byte_level.encode(body["prompt"]).ids}
        if not state.template:
            return 400, {"object": "error", "message": "no chat template"}
        return 200, {"tokens": byte_level.encode("<|user|>" + body["messages"][0]["content"]).ids}

    def detokenize(body):
        state.lists = max(state.lists, len(body["tokens"]))
        return 200, {"text": decode_with(byte_level)(body["tokens"])}

    def generate(body):
        state.asked = body
        return 200, reply_of(len(body["input_ids"]), **state.changes)

    answers = {
        "/server_info": (200, {"model_path": "/models/m", "internal_states": []}),
        "/tokenize": tokenize, "/detokenize": detokenize, "/generate": generate,
    }  # fmt: skip
    with fake_http(answers) as url:
        state.url = url
        yield state


def run(capsys, *flags):
    code = main(["explain", *map(str, flags)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_page_of_a_chat(server, capsys, tmp_path, byte_level):
    prompt, out = tmp_path / "prompt.txt", tmp_path / "kept.html"
    prompt.write_text(TEXT + "\n")
    flags = ("--prompt", prompt, "--question", "why?", "--budget", "0.05", "--out", out, "--tokens", 7)
    code, said, err = run(capsys, server.url, *flags)
    assert code == 0 and not err and f"Written to {out}." in said
    assert Page(out.read_text()).text["text"] == f"<|user|>{TEXT}\nwhy?"
    sampling = server.asked["sampling_params"]
    assert sampling["max_new_tokens"] == 7
    assert sampling["custom_params"] == {"laprox": {"return_kept": True, "budget": 0.05}}


def test_a_server_without_a_template_and_text_as_it_is(server, capsys, tmp_path, byte_level, monkeypatch):
    server.template = False
    code, said, err = run(capsys, server.url, "--prompt", "a b", "--out", tmp_path / "a.html")
    assert code == 0 and "no chat template" in err
    assert byte_level.decode(server.asked["input_ids"]) == "a b"
    assert "budget" not in server.asked["sampling_params"]["custom_params"]["laprox"]
    server.template = True
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))
    code, said, err = run(capsys, server.url, "--prompt", "-", "--raw")
    assert code == 0 and not err and byte_level.decode(server.asked["input_ids"]) == "from a pipe"
    assert "from a pipe" in said and "kept by layer, 0 first  █" in said and "<i>yes</i>" in said


def test_a_picture(server, capsys, tmp_path):
    out = tmp_path / "kept.png"
    code, _, err = run(capsys, server.url, "--prompt", TEXT * 5, "--out", out)
    assert code == 0 and not err
    with Image.open(out) as image:
        assert image.format == "PNG" and image.width > 1000 and len(image.convert("RGB").getcolors(256)) > 10
    assert out.stat().st_size < 200_000


def test_a_picture_without_matplotlib(server, capsys, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *more):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    code, _, err = run(capsys, server.url, "--prompt", "a b", "--out", tmp_path / "kept.png")
    assert code == 1 and err.startswith("laprox explain: a PNG needs matplotlib: pip install ")
    assert run(capsys, server.url, "--prompt", "a b", "--out", tmp_path / "kept.html")[0] == 0


def test_long_prompts_are_asked_for_in_parts(server):
    texts = ServerClient(server.url).detokenize([[1]] * (DETOKENIZED_AT_ONCE + 10))
    assert len(texts) == DETOKENIZED_AT_ONCE + 10 and server.lists == DETOKENIZED_AT_ONCE


def test_a_prompt_that_was_left_whole_is_explained(server, capsys):
    server.changes = {"pruned": False, "reason": "short"}
    code, _, err = run(capsys, server.url, "--prompt", "a b")
    assert code == 1 and "was left whole: it has fewer tokens" in err
    for end, new, budget, enabled in (
        (10, 9, 0.1, True),
        (999, 1, 0.1, True),
        (999, 9, 1.0, True),
        (9, 9, 1, False),
    ):
        plan = make_plan(Config(budget=budget), Options(enabled=enabled), end, new)
        assert plan.reason in WHY_WHOLE


def test_a_stock_server_is_named(capsys):
    with pytest.raises(CommandError, match="was it started with --enable-laprox"):
        kept_of("m", {"text": "", "meta_info": {}}, [], 0)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--prompt", "no_such_file.txt"), "no file that can be read"),
        (("--prompt", "  "), "is empty"),
        (("--prompt", "a b", "--out", "kept.pdf"), "give a .png or .html"),
        (("--prompt", "a b", "--out", "/no/such/folder/kept.png"), "in a folder that exists"),
        (("--prompt", "a b", "--budget", "many"), "'many' is not a number"),
    ],
)
def test_bad_input_gets_one_line_before_anything_is_sent(flags, said, capsys):
    code, out, err = run(capsys, "127.0.0.1:1", *flags)
    assert code == 1 and not out and said in err
    assert err.startswith("laprox explain: ") and err.count("\n") == 1


def test_what_a_prompt_writes_to_a_terminal_is_text(capsys):
    terminal.draw(made("a \x1b[2Jb \x07c"))
    said = capsys.readouterr().out
    assert "\x1b[2J" not in said and "\x07" not in said and "·[2Jb" in said
    terminal.draw(replace(made("a b"), answer="\x1b]0;mine\x07 \ud83d\nyes"))
    said = capsys.readouterr().out
    assert "\x1b]" not in said and "\x07" not in said and "·]0;mine· ·\nyes" in said


def test_a_prompt_that_is_no_text_is_one_line(tmp_path, capsys, monkeypatch):
    """Also where its name has a blank in it, and might be a prompt itself."""
    file = tmp_path / "a prompt.bin"
    file.write_bytes(b"\xff\xfe\x00")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff"), "utf-8"))
    for prompt in (file, "-"):
        code, out, err = run(capsys, "127.0.0.1:1", "--prompt", prompt)
        assert code == 1 and not out and err.count("\n") == 1
        assert err.startswith(f"laprox explain: --prompt {prompt} holds no text: 'utf-8'")


def test_files_that_cannot_be_written(tmp_path, monkeypatch, server, capsys):
    for name in ("folder.html", "folder.png"):
        (tmp_path / name).mkdir()
        code, _, err = run(capsys, server.url, "--prompt", "a b", "--out", tmp_path / name)
        assert code == 1 and "cannot be written" in err and err.count("\n") == 1


def test_every_reason_has_its_words():
    assert set(WHY_WHOLE) == set(REASONS)
