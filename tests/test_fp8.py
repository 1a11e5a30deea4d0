"""Views over fp8 KV with a checkpoint's scales, beside those over the numbers that it stands for."""

import pytest
import torch
from msgspec.structs import replace

from fakes import CONFIG, DIM, FP8, HEADS, LAYERS, QUERY_HEADS, TinyModel
from laprox_sglang.ranks import ONE_RANK
from laprox_sglang.served_model import scored_layers
from laprox_sglang.views.plan import Plan
from laprox_sglang.views.prune import Pruner

TOKENS, SLOTS = 90, 20
PLAN = Plan(0, TOKENS, SLOTS, CONFIG.sink_tokens, CONFIG.window, None)
# Powers of two, others in every layer, so that e4m3 holds what is divided by them.
K_SCALES, V_SCALES = [0.5, 0.0625], [0.25, 2.0**-5]


@pytest.mark.parametrize(
    ("scorer", "allocator"),
    [("laprox", "model"), ("laprox", "layer"), ("laprox-joint", "model"), ("snapkv", "layer"),
     ("keydiff", "uniform"), ("criticalkv", "uniform")],
)  # fmt: skip
def test_what_is_kept_is_what_would_be_kept_of_the_numbers(scorer, allocator, seed):
    """By the kernel, which is told of the keys' scales only, and by scorers, which are given the numbers."""
    torch.manual_seed(seed)
    layers = scored_layers(TinyModel())
    for layer, k_scale, v_scale in zip(layers, K_SCALES, V_SCALES, strict=True):
        layer.module.k_scale_float, layer.module.v_scale_float = k_scale, v_scale
    keys, values = torch.randn((2, TOKENS + 1, LAYERS, HEADS, DIM)).to(FP8).float()
    queries = torch.randn((LAYERS, CONFIG.window, QUERY_HEADS, DIM))
    divided = [
        (numbers / torch.tensor(scales).view(-1, 1, 1)).to(FP8)
        for numbers, scales in ((keys, K_SCALES), (values, V_SCALES))
    ]
    pooling = 1 if scorer in ("keydiff", "criticalkv") else 3
    config = replace(CONFIG, scorer=scorer, allocator=allocator, pooling_kernel=pooling)
    kept = []
    for pool in ((keys, values), divided):
        table = torch.arange(TOKENS + 1, dtype=torch.int32).roll(-1)[None]
        pruner = Pruner(config, layers, *pool, table, TOKENS, ONE_RANK)
        view = pruner.make_view(PLAN, 0, queries, torch.arange(1, SLOTS + 1), True, True)
        assert view.positions is not None
        kept.append((view.positions.tolist(), view.cu_cells.tolist()))
    assert kept[0] == kept[1]
    # What was packed are the same numbers, of which none was rounded again.
    layer = torch.repeat_interleave(torch.arange(LAYERS * HEADS) // HEADS, torch.tensor(kept[0][1]).diff())
    for numbers, held, scales in zip((keys, values), divided, (K_SCALES, V_SCALES), strict=True):
        exact, packed = (pool[1 : SLOTS + 1].float().reshape(-1, DIM) for pool in (numbers, held))
        assert torch.equal(packed * torch.tensor(scales)[layer][:, None], exact)
