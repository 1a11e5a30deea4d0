"""The model that reads chosen cells, beside Hugging Face's own masks, and the arithmetic around it."""

import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from benchmarks.quality import readings
from benchmarks.quality.__main__ import main
from benchmarks.quality.methods import BASELINES, BUDGETS
from benchmarks.quality.methods.choice import Chooser, allocator, plan_of
from benchmarks.quality.methods.judge import outcomes, simulate
from benchmarks.quality.methods.quantized import FOUR_BITS, four_bits, fp8
from benchmarks.quality.methods.reader import LONGEST_WINDOW, BadModel, Model, everything
from benchmarks.quality.methods.variants import RULES, foretold, moments_cells
from benchmarks.quality.record.documents import all_kv
from benchmarks.quality.record.results_file import Measured
from benchmarks.quality.served import Reply, ask, compare
from benchmarks.quality.tasks.task import Case, Earlier
from laprox_sglang.options.server import Config
from laprox_tools.needle import MODEL_PATH, Task

pytestmark = pytest.mark.full

LENGTH = 400
BUDGET = 0.2


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(MODEL_PATH)


@pytest.fixture(scope="module")
def stock() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(
        MODEL_PATH, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture
def sample(seed: int):
    return Task(seed).batch(1, LENGTH)[0]


def stock_logprobs(stock: LlamaForCausalLM, ids: list[int], last: int, hidden: torch.Tensor) -> torch.Tensor:
    """Log-probs of the last tokens, none of which sees the positions ``hidden``; or each its own."""
    seen = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    seen[-last:, : hidden.shape[-1]] &= ~hidden
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    with torch.inference_mode():
        return stock(torch.tensor([ids]), attention_mask=mask[None, None]).logits[0, -last:].log_softmax(-1)


@pytest.fixture
def gpt2(tmp_path):
    """A model of another build, with the words of the 7M model."""
    config = GPT2Config(
        vocab_size=512, n_positions=4096, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_PATH / name, tmp_path / "gpt2")
    return tmp_path / "gpt2"


def test_a_model_of_another_build_is_one_line(gpt2, tmp_path, capsys):
    def said(path: Path) -> str:
        arguments = ["prose", "--quick", "--model", str(path), "--json", str(tmp_path / "quality.json")]
        assert main(arguments) == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(f"quality: {path} ")
        return line

    assert "is a GPT2LMHeadModel with 0 layers of attention with an o_proj among 2" in said(gpt2)
    (gpt2 / "model.safetensors").write_bytes(b"no weights")
    assert "is not loaded: SafetensorError" in said(gpt2)
    (gpt2 / "tokenizer.json").write_text("{")
    assert "has no tokenizer that can be read" in said(gpt2)


def test_layers_that_are_not_read_are_named(tmp_path):
    """A window that slides would be ignored here, and the figures be those of another model."""
    config = MistralConfig(
        vocab_size=512, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=8,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(BadModel, match="MistralForCausalLM with sliding-window attention"):
        Model(tmp_path)
    with pytest.raises(BadModel, match="is not loaded"):
        Model(tmp_path / "nowhere")


def test_all_cells_are_the_model_itself(model, stock, sample):
    ids, answer = sample.prompt_ids(), sample.answer_ids()
    prefix = model.prefill(ids)
    (found,) = model.follow(prefix, answer, everything(model, prefix))
    nothing = torch.zeros(len(ids), dtype=torch.bool)
    expected = stock_logprobs(stock, ids + answer, len(answer) + 1, nothing)
    assert torch.allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("by_token", [False, True])
def test_hidden_positions_are_hidden(model, stock, sample, seed, by_token):
    """From all that follows alike, or from each token others."""
    ids, answer = sample.prompt_ids(), sample.answer_ids()
    rows = (len(answer),) if by_token else ()
    hidden = torch.rand(*rows, len(ids), generator=torch.Generator().manual_seed(seed)) < 0.5
    prefix = model.prefill(ids)
    whole = everything(model, prefix)
    kept = (whole[..., None, :] if by_token else whole) & ~hidden
    # Beside others: choices must not see each other.
    _, found, _ = model.follow(prefix, answer, torch.cat([~kept | kept, kept, ~kept | kept]))
    expected = stock_logprobs(stock, ids + answer, len(answer), hidden)
    assert torch.allclose(found[1:], expected, atol=2e-4)
    assert torch.equal(found[0], prefix.logprobs)


def test_layers_and_heads_differ(model, sample, seed):
    prefix = model.prefill(sample.prompt_ids())
    choices = everything(model, prefix).repeat(3, 1, 1, 1)
    draw = random.Random(seed)
    choices[1, draw.randrange(model.layers), draw.randrange(model.heads), :-1] = False
    choices[2, draw.randrange(model.layers), draw.randrange(model.heads), :-1] = False
    whole, *others = (steps[1:] for steps in model.follow(prefix, sample.answer_ids(), choices))
    assert not any(torch.allclose(whole, other, atol=1e-4) for other in others)


def test_a_prompt_in_two_pieces_is_the_same(model, sample):
    ids = sample.prompt_ids()
    at_once, piecewise = model.prefill(ids), model.prefill(ids[-20:], model.prefill(ids[:-20]))
    assert piecewise.ids == ids
    assert torch.allclose(piecewise.logprobs, at_once.logprobs, atol=2e-4)
    for name in ("keys", "values", "queries"):
        for a, b in zip(getattr(piecewise, name), getattr(at_once, name), strict=True):
            assert torch.allclose(a, b, atol=2e-4)
    assert at_once.queries[0].shape[1] == LONGEST_WINDOW


def test_all_kv_loses_nothing_and_the_rest_is_counted(model, sample):
    ids, answer = sample.prompt_ids(), sample.answer_ids()
    prefix = model.prefill(ids)
    nothing = torch.zeros_like(everything(model, prefix)[0])
    whole, blind = outcomes(model, prefix, [], answer, [nothing])
    assert whole.kl == 0 and whole.erased == 0 and blind.erased == 1
    assert blind.kl > 0.1 and blind.logprob < whole.logprob
    (steps,) = model.follow(prefix, answer[:-1], everything(model, prefix))
    expected = [steps[i, token].item() for i, token in enumerate(answer)]
    assert whole.logprob == pytest.approx(sum(expected) / len(expected), abs=1e-5)


# Small views, and others.
@pytest.mark.parametrize("share", [0.1, BUDGET])
@pytest.mark.parametrize("name", BASELINES)
def test_every_method_keeps_what_it_is_granted(model, sample, name, share):
    prefix = model.prefill(sample.prompt_ids())
    config, slots = BASELINES[name], -(-len(prefix.ids) * share // 1)
    cells = Chooser(model, prefix).cells(config, int(slots))
    assert cells.sum() == slots * model.layers * model.heads
    assert (
        cells[..., -plan_of(config, int(slots), len(prefix.ids)).window :].all()
        and cells[..., : config.sink_tokens].all()
    )
    if allocator(config) == "uniform":
        assert cells.sum(dim=-1).unique().numel() == 1


def test_a_share_is_asked_for_as_a_number(model, sample, monkeypatch):
    """Of a short prompt a server keeps more than a fraction of it, and rows speak of shares."""
    asked, ids = [], sample.prompt_ids()
    told = {"laprox": [{"pruned": False}]}

    def generate_all(bodies, at_once):
        asked.extend(body["laprox"] for body in bodies)
        return [{"output_ids": [1, 2], "meta_info": told} for _ in bodies]

    ask(SimpleNamespace(generate_all=generate_all), dict.fromkeys((None, 0.1, 0.4), ids), 1)
    slots = [-(-len(ids) // 10), -(-len(ids) * 4 // 10)]
    assert asked == [{"enabled": False}, *({"budget": n, "return_kept": True} for n in slots)]
    found = simulate(model, model.prefill(ids), [], sample.answer_ids(), "first", {"x": Config()}, (0.1,))
    cells = Chooser(model, model.prefill(ids)).cells(Config(), slots[0])
    erased = 1 - cells.flatten(0, 1).any(0).float().mean().item()
    assert [outcome.erased for outcome in found.values()] == [0, erased]
    # And what the server kept is compared with what the reference keeps in as many slots.
    counted = []
    monkeypatch.setattr(readings, "compare", lambda *given: counted.append(given[-1]) or {})
    replies = {None: Reply(ids[:1], None), 0.1: Reply(ids[:1], cells)}
    chooser = Chooser(model, model.prefill(ids))
    readings.replay(Measured({}), Config(), chooser, sample.answer_ids(), "first", replies, False)
    assert counted == slots[:1]


def test_scores_are_reused_only_where_they_are_the_same(model, sample):
    prefix = model.prefill(sample.prompt_ids())
    for config in BASELINES.values():
        chooser = Chooser(model, prefix)
        chooser.cells(config, 0.4)
        assert torch.equal(chooser.cells(config, BUDGET), Chooser(model, prefix).cells(config, BUDGET))


def test_a_prompt_that_the_server_left_whole_reads_all_kv(model, sample, monkeypatch):
    """Of a document that is too short for some budget every budget has a reading: rows face each other."""
    prompt, answer = sample.prompt_ids(), sample.answer_ids()
    cells = Chooser(model, model.prefill(prompt)).cells(Config(), BUDGET)

    def asked(server, prompts, tokens):
        return {budget: Reply(answer, cells if budget == BUDGET else None) for budget in prompts}

    monkeypatch.setattr(readings, "ask", asked)
    monkeypatch.setattr(readings, "BASELINES", {})
    subject = SimpleNamespace(model=model, served=Config(budget=0.5), server=None)
    measured = readings.first_turn(subject, Case(prompt, answer), True)
    assert readings.first_turn(subject, Case(prompt, answer), False).outcomes.keys() == (
        measured.outcomes.keys()
    )
    served = {r.budget: outcome for r, outcome in measured.outcomes.items() if r.method == "laprox"}
    assert set(served) == {*BUDGETS} and served[0.4].kl == served[0.4].erased == 0
    assert served[BUDGET].kl > 0
    assert measured.replay["cells"] == cells.sum() and measured.replay["answers"] == 1 + len(BUDGETS)


def test_a_later_turn_that_the_server_left_whole_reads_all_kv(model, sample, monkeypatch):
    prompt, answer = sample.prompt_ids(), sample.answer_ids()
    case = Case(prompt, answer, context=len(prompt) - 10, earlier=Earlier(prompt, answer, prompt[-10:]))
    monkeypatch.setattr(
        readings, "ask", lambda server, prompts, tokens: dict.fromkeys(prompts, Reply(answer, None))
    )
    subject = SimpleNamespace(model=model, served=Config(budget=0.5), server=None)
    measured = readings.later_turn(subject, case, True)
    served = {r.budget: o for r, o in measured.outcomes.items() if (r.turn, r.method) == ("later", "laprox")}
    assert set(served) == {*BUDGETS} and {o.kl for o in served.values()} == {0.0}
    assert all_kv("later") in measured.outcomes and "cells" not in measured.replay


def test_simulation_names_its_readings(model, sample):
    prefix = model.prefill(sample.prompt_ids())
    found = simulate(model, prefix, [], sample.answer_ids(), "first", BASELINES, (BUDGET, 1.0))
    # At a budget of 1 nothing is pruned.
    assert all(outcome.kl < 1e-6 for reading, outcome in found.items() if reading.budget == 1)
    assert {reading.method for reading in found} == {"all KV", *BASELINES}


def test_rounding_loses_little_and_four_bits_more(model, sample):
    prefix = model.prefill(sample.prompt_ids())
    for round_off, most in ((fp8, 0.07), (four_bits, 0.6)):
        rounded = round_off(prefix)
        for exact, other in zip(prefix.keys + prefix.values, rounded.keys + rounded.values, strict=True):
            assert other.shape == exact.shape and not torch.equal(other, exact)
            assert (other - exact).abs().max() <= most * exact.abs().max()
    levels = four_bits(prefix).values[0][0, 0].unique().numel()
    assert levels <= 16 and FOUR_BITS == 0.28125


def test_a_prompt_in_fp8_is_attended_to_as_it_was_rounded(model, sample):
    """By the prompt itself, and by what follows it, whose own KV is rounded too."""
    ids, kv = sample.prompt_ids(), torch.float8_e4m3fn
    exact, rounded = model.prefill(ids), model.prefill(ids, kv_dtype=kv)
    for held in rounded.keys + rounded.values:
        assert torch.equal(held, held.to(kv).float())
    # Rounding the first layer's changes all that the layers behind it are given.
    assert torch.equal(exact.keys[0].to(kv).float(), rounded.keys[0])
    assert not torch.equal(exact.keys[1].to(kv).float(), rounded.keys[1])
    cells = everything(model, rounded)
    (followed,) = model.follow(rounded, sample.answer_ids(), cells)
    behind = model.prefill(sample.answer_ids(), rounded, kv_dtype=kv)
    torch.testing.assert_close(followed[-1], behind.logprobs, atol=1e-4, rtol=0)
    assert (followed[-1] - model.prefill(sample.answer_ids(), rounded).logprobs).abs().max() > 1e-4


def test_fp8_is_read_beside_16_bits(model, sample, monkeypatch):
    """Of two servers, each with a model that has its KV."""
    asked = []

    def ask(server, prompts, tokens):
        asked.extend((server, budget) for budget in prompts)
        return dict.fromkeys(prompts, Reply(sample.answer_ids(), None))

    monkeypatch.setattr(readings, "ask", ask)
    subject = SimpleNamespace(model=model, served=Config(budget=0.5), server="plain", fp8_server="fp8")
    case = Case(sample.prompt_ids(), sample.answer_ids())
    measured = readings.in_fp8(subject, case, True)
    assert asked == [(server, budget) for server in ("plain", "fp8") for budget in (None, *BUDGETS)]
    assert {(r.method, r.budget) for r in measured.outcomes} == {
        (name + kv, budget)
        for kv in ("", ", fp8 KV")
        for name, budget in [("all KV", 1.0), *(("laprox", budget) for budget in BUDGETS)]
    }
    logprobs = {r.method: outcome.logprob for r, outcome in measured.outcomes.items()}
    assert logprobs["all KV"] != logprobs["all KV, fp8 KV"] and logprobs["all KV"] == logprobs["laprox"]


@pytest.mark.parametrize(
    ("reference", "kept", "floor", "gap"),
    [
        ([[1, 1, 0, 0], [1, 1, 0, 0]], [[1, 1, 0, 0], [1, 1, 0, 0]], 0.0, 0),
        ([[1, 1, 0, 0], [1, 1, 0, 0]], [[1, 0, 1, 0], [1, 1, 0, 0]], 0.0, 1 / 4),
        # The second head's exchange is large beside its own scores, and small beside the first one's.
        ([[1, 1, 0, 0], [1, 1, 0, 0]], [[1, 1, 0, 0], [1, 0, 1, 0]], 0.0, 3 / 4),
        # A cell of one head in place of one of another: they compete, but where a head is held at its floor.
        ([[1, 1, 1, 0], [1, 0, 0, 0]], [[1, 1, 0, 0], [1, 1, 0, 0]], 0.0, 1 - 0.4 / 3),
        ([[1, 1, 1, 0], [1, 0, 0, 0]], [[1, 1, 0, 0], [1, 1, 0, 0]], 0.5, 0),
        # The first cell is kept in any case: nothing may take its place.
        ([[1, 1, 0, 0], [1, 1, 0, 0]], [[0, 1, 1, 0], [1, 1, 0, 0]], 0.0, 1),
    ],
)
def test_what_a_server_kept_instead_is_measured_among_what_competes(monkeypatch, reference, kept, floor, gap):
    plan = SimpleNamespace(start=0, least=2, window=0, sinks=0)
    monkeypatch.setattr("benchmarks.quality.served.plan_of", lambda *args: plan)
    cells = torch.tensor([reference]).bool()
    scores = torch.tensor([[[torch.inf, 4.0, 3.0, 1.0], [torch.inf, 0.4, 0.1, 0.0]]])
    chooser = SimpleNamespace(cells=lambda config, budget: cells, scores=lambda config, plan: scores)
    found = compare(torch.tensor([kept]).bool(), chooser, Config(floor=floor), BUDGET)
    assert found["cells"] == 4 and found["gap"] == pytest.approx(gap)


def test_moments_of_one_value_say_what_was_dropped(seed):
    """Where all dropped keys are alike, first order is all there is."""
    draw = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, 9, 4, generator=draw), torch.randn(2, 9, 4, generator=draw)
    keys[:, 5:] = keys[:, 5:6]
    dropped = torch.arange(9).expand(1, 2, 9) >= 5
    queries = torch.randn(1, 2, 3, 1, 4, generator=draw)
    logit, value = foretold(keys, values, dropped, queries)
    exact = torch.einsum("mhgtd,hnd->mhgtn", queries, keys)[..., 5:]
    assert torch.allclose(logit, exact.logsumexp(-1, keepdim=True), atol=1e-4)
    assert torch.allclose(value, values[None, :, None, None, 5:].mean(-2), atol=1e-4)
    nothing, _ = foretold(keys, values, torch.zeros_like(dropped), queries)
    assert (nothing == -torch.inf).all()


def test_what_the_server_does_not_have_is_simulated(model, sample):
    """Every rule keeps what it is granted; a correction brings the answer closer to all KV at equal cells."""
    ids, answer = sample.prompt_ids(), sample.answer_ids()
    prefix = model.prefill(ids, phases=(len(ids) - 60, len(ids)))
    chooser = Chooser(model, prefix)
    cells = {name: chooser.cells(rule, BUDGET).sum().item() for name, rule in RULES.items()}
    granted = cells.pop("as served")
    assert cells.pop("at least 128 slots") == 128 * model.layers * model.heads
    for name in [name for name in cells if "moments" in name]:
        assert granted - cells.pop(name) == moments_cells(64) * model.layers * model.heads
    assert set(cells.values()) == {granted}
    found = simulate(model, prefix, [], answer, "first", RULES, (BUDGET,))
    assert {reading.method for reading in found} == {"all KV", *RULES}


def test_a_rule_that_corrects_nothing_is_the_rule(model, sample):
    prefix = model.prefill(sample.prompt_ids())
    kept = everything(model, prefix)
    whole, corrected = model.follow(prefix, sample.answer_ids(), kept.repeat(2, 1, 1, 1), [False, True])
    assert torch.allclose(whole, corrected, atol=1e-5)
    kept[..., 100:200] = False
    plain, corrected = model.follow(prefix, sample.answer_ids(), kept.repeat(2, 1, 1, 1), [False, True])
    assert not torch.allclose(plain, corrected, atol=1e-4)
