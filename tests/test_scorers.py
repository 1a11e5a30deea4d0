"""Every scorer with every allocator and pooling, and what their formulas say."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

import laprox_kernels as kernels
from laprox_sglang.options.server import Config
from laprox_sglang.scorers import SCORERS, SEE_BUDGET, BadScorer, check_nested, find, is_pooled, try_out
from laprox_sglang.scorers.allocators import ALLOCATORS, keep
from laprox_sglang.scorers.pooling import KINDS, Pooling
from laprox_sglang.scorers.prompt import Prompt
from laprox_sglang.scorers.rank import compare_layers, rank
from laprox_sglang.views.memory import Itemsizes, needs
from memory import Peak
from scorer_cases import Case, random_case

INF = float("inf")
EVERY_SCORER = pytest.mark.parametrize("name", SCORERS)


def ranked(case: Case, name: str, pooling: Pooling) -> torch.Tensor:
    """Scores that are comparable over layers."""
    out = case.unwritten()
    compare_layers(out, rank(case.layers(), SCORERS[name], pooling, out), case.candidates)
    return out


@EVERY_SCORER
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_every_scorer_with_every_allocator_and_pooling(name, kind, allocator, seed):
    for variant in range(3):
        case = random_case(seed + variant)
        pooling = Pooling(kind, (1, 3, 7)[variant])
        scores = ranked(case, name, pooling)
        assert torch.equal(scores, ranked(case, name, pooling)), "another result for the same prompt"
        candidates = scores[:, :, case.candidates]
        assert bool((candidates >= 0).all())
        finite = candidates.masked_fill(candidates == INF, 0)
        torch.testing.assert_close(finite.sum((1, 2)), torch.ones(len(scores)))
        if is_pooled(SCORERS[name]):
            assert bool(candidates.isfinite().all())

        layers, heads, length = scores.shape
        kept, cu_cells = keep(scores.clone(), case.slots, ALLOCATORS[allocator], case.protected)
        assert len(kept) == case.slots * layers * heads == int(cu_cells[-1])
        assert bool((kept.diff() > 0).all())
        of_cell = [set((kept[a:b] % length).tolist()) for a, b in pairwise(cu_cells)]
        protected = {*range(case.sinks), *range(length - case.protected + case.sinks, length)}
        assert all(protected <= positions for positions in of_cell)


@pytest.mark.parametrize("width", [1, 3, 7, 15])
@pytest.mark.parametrize("kind", ["average", "parabola"])
def test_laprox_layer_by_layer_is_the_kernel(kind, width, seed):
    for variant in range(8):
        case = random_case(seed + variant)
        expected = case.unwritten()
        pooling = Pooling(kind, width)
        scale = torch.full((len(case.queries),), case.scale)
        given = case.queries, *case.pool, case.row, case.start, case.gram, scale, case.sinks
        expected_sums = kernels.score(*given, pooling, expected)
        out = case.unwritten()
        sums = rank(case.layers(), SCORERS["laprox"], pooling, out)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(sums, expected_sums)


def window_attention(prompt: Prompt, q_head: int) -> torch.Tensor:
    """``[W, n]`` in float64, with the mask written out."""
    n, window = prompt.length, prompt.window
    head = q_head // (prompt.gram.shape[0] // prompt.heads)
    logits = prompt.queries[:, q_head].double() @ prompt.keys[:, head].double().T * prompt.scale
    for w in range(window):
        logits[w, n - window + w + 1 :] = -INF
    return logits.softmax(dim=-1)


def by_definition(name: str, prompt: Prompt, head: int, token: int) -> torch.Tensor:
    """The score of one cell in float64, by the sentence that defines it."""
    group = prompt.gram.shape[0] // prompt.heads
    members = range(head * group, (head + 1) * group)
    columns = [window_attention(prompt, q)[:, token] for q in members]
    value = prompt.values[token, head].double()
    projected = [value @ prompt.output[q].double() for q in members]
    pairs = list(zip(columns, projected, strict=True))
    if name == "laprox":
        return sum(c.norm() * p.norm() for c, p in pairs) / group
    if name == "laprox-max":
        return max(c.max() * p.norm() for c, p in pairs)
    if name == "laprox-joint":
        return sum(torch.outer(c, p) for c, p in pairs).norm()
    if name == "snapkv":
        return sum(c.mean() for c in columns) / group
    if name == "keydiff":
        keys = prompt.keys[:, head].double()
        anchor = (keys / keys.norm(dim=1, keepdim=True)).mean(dim=0)
        return 1 - keys[token] @ anchor / (keys[token].norm() * anchor.norm())
    if name == "obcache-k":
        total = 0
        for q in members:
            attention = window_attention(prompt, q)
            logits = prompt.queries[:, q].double() @ prompt.keys[token, head].double() * prompt.scale
            missed = value - attention @ prompt.values[:, head].double()
            total += ((attention[:, token] * logits) ** 2 * (missed**2).sum(dim=1)).sum() / group
        return total
    assert name == "momentkv"
    attention = [by_definition("snapkv", prompt, head, i) for i in range(prompt.length)]
    candidates = range(prompt.length)[prompt.candidates]
    best = sorted(candidates, key=lambda i: -attention[i])
    dropped = best[prompt.keep - prompt.protected :]
    keys, values = (x[dropped, head].double() for x in (prompt.keys, prompt.values))
    covariance = (values - values.mean(0)).T @ (keys - keys.mean(0)) / len(dropped)
    foretold = values.mean(0) + covariance @ prompt.keys[token, head].double() / keys.shape[1] ** 0.5
    return attention[token] * (value - foretold).norm()


@pytest.mark.parametrize("name", sorted(SCORERS.keys() - {"criticalkv", "streamingllm", "random"}))
def test_a_scorer_is_what_its_paper_says(name, seed):
    case = random_case(seed, most=20)
    for prompt in case.layers():
        scores = SCORERS[name](prompt)
        assert scores.shape == (prompt.heads, prompt.length)
        for head in range(prompt.heads):
            for token in {*range(prompt.length)[prompt.candidates][::5], prompt.length - 1}:
                expected = float(by_definition(name, prompt, head, token))
                assert float(scores[head, token]) == pytest.approx(expected, rel=1e-3, abs=1e-6), (
                    head,
                    token,
                )


def test_criticalkv_keeps_its_first_part_by_attention_alone(seed):
    case = random_case(seed)
    for prompt in case.layers():
        first = max(0, int(0.5 * case.slots) - case.protected)
        attention = Pooling()(SCORERS["snapkv"](prompt)[:, prompt.candidates])
        scores = SCORERS["criticalkv"](prompt)[:, prompt.candidates]
        for of_head, best in zip(scores, attention.topk(first).indices, strict=True):
            assert of_head.isinf().nonzero()[:, 0].tolist() == best.sort().values.tolist()
        norms = torch.einsum("nhd,hgdx->hgnx", prompt.values, prompt.output.unflatten(0, (prompt.heads, -1)))
        expected = (attention + 1e-4) * norms.norm(p=1, dim=-1).mean(dim=1)[:, prompt.candidates]
        rest = scores.isfinite()
        torch.testing.assert_close(scores[rest], expected[rest], rtol=1e-4, atol=1e-7)


def test_streamingllm_keeps_the_most_recent_and_random_is_no_pattern(seed):
    case = random_case(seed)
    scores = ranked(case, "streamingllm", Pooling())
    length = scores.shape[2]
    kept, _ = keep(scores, case.slots, ALLOCATORS["model"], case.protected)
    recent = {*range(case.sinks), *range(length - case.slots + case.sinks, length)}
    assert {int(i) % length for i in kept} == recent
    by_layer = [SCORERS["random"](prompt) for prompt in random_case(seed).layers()]
    assert all(not torch.equal(a, b) for a in by_layer for b in by_layer if a is not b)


@pytest.mark.parametrize("count", [1, 2, 9, 20])
@pytest.mark.parametrize("width", [1, 3, 5, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_pooling(kind, width, count, seed):
    torch.manual_seed(seed)
    scores = torch.rand((2, count))
    got = Pooling(kind, width)(scores)
    for head in range(2):
        for i in range(count):
            first = i // width * width if kind == "chunk" else i - width // 2
            places = [j for j in range(first, first + width) if 0 <= j < count]
            near = [float(scores[head, j]) for j in places]
            reach = width // 2 + 1
            weighed = [(1 - ((i - j) / reach) ** 2) * value for j, value in zip(places, near, strict=True)]
            expected = {"average": sum(near) / width, "max": max(near), "chunk": sum(near) / len(near)}
            expected["parabola"] = sum(weighed) / sum(1 - (d / reach) ** 2 for d in range(1 - reach, reach))
            assert float(got[head, i]) == pytest.approx(expected[kind], rel=1e-5)


def test_worthless_layers_and_nan(seed):
    case = random_case(seed)
    case.pool[1] = 0
    assert bool((ranked(case, "laprox-max", Pooling())[:, :, case.candidates] == 0).all())
    case.pool[1, case.row[case.start + case.sinks]] = float("nan")
    assert bool(ranked(case, "laprox-max", Pooling())[:, :, case.candidates].isnan().all())


@EVERY_SCORER
@pytest.mark.parametrize(("q_heads", "heads", "dim", "window"), [(8, 2, 64, 32), (8, 4, 128, 4)])
def test_the_memory_of_a_scorer_is_set_aside(name, q_heads, heads, dim, window):
    n, hidden, layers = 2100, q_heads * dim, 2
    half = {"dtype": torch.bfloat16}
    queries, pool = torch.zeros((window, q_heads, dim), **half), torch.randn((2, n, heads, dim), **half)
    weights = torch.randn((q_heads, dim, hidden), **half)
    gram = torch.zeros((q_heads, dim, dim))

    def prompts():
        for layer in range(layers):
            given = queries.float(), *(x.float() for x in pool)
            yield Prompt(layer, *given, gram, 0.1, 0, 4, 1500, lambda: weights.float())

    config = Config(scorer=name, window=window, **({"pooling": "max"} if name == "laprox" else {}))
    out = torch.empty((layers, heads, n))
    with Peak() as used:
        rank(prompts(), SCORERS[name], config.method.pooling, out)
    model = SimpleNamespace(
        num_hidden_layers=layers, num_attention_heads=q_heads, head_dim=dim, context_len=n,
        hidden_size=hidden, get_num_kv_heads=lambda ranks: heads // ranks,
    )  # fmt: skip
    args = SimpleNamespace(
        cuda_graph_config=SimpleNamespace(decode=SimpleNamespace(backend="disabled", bs=None)),
        max_running_requests=1, max_total_tokens=None, max_prefill_tokens=n, chunked_prefill_size=n,
        prefill_max_requests=1,
    )  # fmt: skip
    reserved = needs(config, model, 1, args, Itemsizes(2, 2), 2**40)["layer by layer"]
    print(f"{name}: {used.peak / 1e6:.1f} MB of {reserved / 1e6:.1f}")
    assert n * heads * dim * 8 < used.peak <= reserved


def test_names(tmp_path, monkeypatch):
    assert all(find(name) is scorer for name, scorer in SCORERS.items())
    assert find("laprox_sglang.scorers.snapkv:snapkv") is SCORERS["snapkv"]
    (tmp_path / "broken_scorer.py").write_text("raise RuntimeError('not\\ntoday')")
    monkeypatch.syspath_prepend(tmp_path)
    for name, said in {
        "snapvk": "laprox, laprox-max",
        "no_such_module:x": "No module named",
        "laprox_sglang.scorers.snapkv:keydiff": "no attribute",
        "broken_scorer:x": "RuntimeError",
        "os:sep": "no function",
    }.items():
        with pytest.raises(BadScorer, match=said):
            find(name)


@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        (lambda prompt: prompt.attention, r"not \[H, n\]"),
        (lambda prompt: -prompt.group(prompt.attention[:, 0]), "negative"),
        (lambda prompt: prompt.group(prompt.attention[:, 0]) * float("nan"), "NaN"),
        (lambda prompt: prompt.attentions, "AttributeError"),
        # Neither is pooled at the first prompt: the one cannot be, the other loses its sums.
        (lambda prompt: prompt.keys[..., 0].T.long().abs(), "int64, not torch.float32"),
        (lambda prompt: prompt.keys[..., 0].T.abs().half(), "float16, not torch.float32"),
        (lambda prompt: None, "NoneType"),
    ],
)
def test_a_scorer_that_does_not_score_is_refused_before_anything_is_served(scorer, said, seed):
    prompt = next(random_case(seed).layers())
    with pytest.raises(BadScorer, match=said):
        try_out("mine", scorer, prompt)
    try_out("mine", SCORERS["criticalkv"], prompt)


@EVERY_SCORER
def test_scores_that_depend_on_the_budget_are_noticed(name, seed):
    noticed = 0
    for variant in range(20):
        prompt = next(random_case(seed + variant, most=200).layers())
        try:
            check_nested(name, SCORERS[name], prompt)
        except BadScorer as error:
            assert "leave --laprox-budget-max out" in str(error)
            noticed += 1
    # Of a prompt that its first part fills alike no scorer can tell.
    assert noticed >= 10 if name in SEE_BUDGET else noticed == 0
