"""All methods by name. A new one is a line here over the scorers and allocators of the project."""

from functools import partial

from benchmarks.quality.methods.variants import RULES, Variant
from laprox_sglang.options.server import Config
from laprox_sglang.options.values import AUTO
from laprox_sglang.scorers import SCORERS

BUDGETS = (0.025, 0.05, 0.1, 0.2, 0.4)
SERVED = "laprox"
SET_AS_WE_ARE = ", set as we are"
# What is kept of a prompt depends on these options of a server; its others may change between two runs.
METHOD_OPTIONS = (
    *("budget", "scorer", "allocator", "floor", "pooling", "pooling_kernel"),
    *("window", "sink_tokens", "min_tokens", "keep_prefix"),
)
# What the papers say, but for the sinks, which are the server's for all of them.
paper = partial(Config, pooling="average", pooling_kernel=7, window=32)
BASELINES = {
    "laprox (paper)": paper(allocator="model", floor=0.0),
    "snapkv": paper(scorer="snapkv", allocator="uniform"),
    "ada-kv": paper(scorer="snapkv", allocator="layer", floor=0.2),
    # They gain by our pooling and window as well.
    f"snapkv{SET_AS_WE_ARE}": Config(scorer="snapkv", allocator="uniform"),
    f"ada-kv{SET_AS_WE_ARE}": Config(scorer="snapkv", allocator="layer", floor=0.2),
    "criticalkv": Config(scorer="criticalkv", allocator="uniform"),
    f"criticalkv{SET_AS_WE_ARE}": Config(scorer="criticalkv"),
    "obcache-k": Config(
        scorer="obcache-k", allocator="layer", floor=0.2, pooling="max", pooling_kernel=7, window=16
    ),
    f"obcache-k{SET_AS_WE_ARE}": Config(scorer="obcache-k"),
    "keydiff": Config(scorer="keydiff", allocator="uniform"),
    f"keydiff{SET_AS_WE_ARE}": Config(scorer="keydiff"),
    "streamingllm": Config(scorer="streamingllm", allocator="uniform"),
    "random": Config(scorer="random", allocator="uniform"),
}
# Where all of them would take too long.
RIVALS = {name: BASELINES[name] for name in ("snapkv", "ada-kv")}
# What a better default could be (--settings): one thing changes, all else is as served.
SETTINGS: dict[str, dict[str, Config | Variant]] = {
    "rule": {**RULES},
    "pooling": {
        **{f"average {width}": Config(pooling="average", pooling_kernel=width) for width in (7, 15)},
        **{f"parabola {width}": Config(pooling="parabola", pooling_kernel=width) for width in (15, 17, 19)},
        **{f"{name} 7": method for name, method in RIVALS.items()},
    },
    "window": {f"window {window}": Config(window=window) for window in (8, 16, 24, 32, 48, AUTO)},
    "sharing": {
        "one ranking over the model": Config(allocator="model", floor=0.0),
        **{f"over the model, floor {floor}": Config(allocator="model", floor=floor) for floor in (0.25, 0.5)},
        **{f"by layer, floor {floor}": Config(allocator="layer", floor=floor) for floor in (0.2, 0.5)},
        "same in every head": Config(allocator="uniform"),
    },
    "scorer": {name: Config(scorer=name) for name in SCORERS},
}
