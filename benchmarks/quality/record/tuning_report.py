"""What other settings than the defaults answer: how the defaults were chosen, in docs/quality.md."""

from benchmarks.harness.markdown import origin
from benchmarks.quality.methods import SETTINGS
from benchmarks.quality.record.groups import groups
from benchmarks.quality.record.results_file import Results, ResultsError
from laprox_sglang.options.server import POOLING, POOLING_KERNEL

# Settings as the record calls them, and as the page does. Those pooled over 15 are of commits whose sets were
# relative to the defaults of their day.
SHARED = {
    "average 7 (paper)": "LaProx, one ranking over the model, pooled over 7 (the paper)",
    "average 15": "LaProx, one ranking over the model",
    "15, floor 0.5": "the same, every head keeps half of its share",
    "15, by layer, floor 0.2": "**LaProx, layer by layer, a floor of 0.2**",
    "15, same in every head": "LaProx, every head keeps as much",
    "15, window 8": "LaProx, one ranking over the model, window of 8",
    "snapkv 7": "SnapKV, pooled over 7",
    "snapkv 15": "SnapKV",
    "ada-kv 7": "Ada-KV, pooled over 7",
    "ada-kv 15": "Ada-KV",
}
DEFAULT = f"{POOLING} {POOLING_KERNEL}"
POOLINGS = {name: f"**{name}**" if name == DEFAULT else name for name in SETTINGS["pooling"]}
WINDOWS = {f"window {window}": f"window of {window}" for window in (8, 16, 24, 32, 48)}
WINDOWS["window auto"] = "**24, or 8 for small views**"
# Task, length, what the page calls it, settings.
TABLES: tuple[tuple[str, int, str, dict[str, str]], ...] = (
    ("needles", 2048, "needles in 2,048 tokens", SHARED),
    ("needles", 1024, "needles in 1,024 tokens", SHARED),
    ("multi_news", 3072, "multi_news", SHARED),
    ("needles by pooling", 1024, "pooling; needles in 1,024 tokens", POOLINGS),
    ("needles by pooling", 2048, "pooling; needles in 2,048 tokens", POOLINGS),
    ("prose by pooling", 2048, "pooling; prose, 2,048 tokens", POOLINGS),
    ("multi_news by pooling", 3072, "pooling; multi_news", POOLINGS),
    ("passcodes by pooling", 1024, "pooling; passcodes in 1,024 tokens", POOLINGS),
    ("later needles", 1024, "a later question, 1,024 tokens", WINDOWS),
    ("prose by window", 2048, "prose, 2,048 tokens", WINDOWS),
    *(
        (task, length, f"small views, {what}{length:,} tokens", WINDOWS)
        for length in (512, 1024, 2048)
        for task, what in (("small views", "needles in "), ("small views, later", "a later question, "))
    ),
    ("small views, prose", 2048, "small views, prose, 2,048 tokens", WINDOWS),
)


def tuning(results: Results) -> str:
    found = {(group.whole.task, group.whole.length): group for group in groups(results.rows)}
    counts = ", ".join(f"{part['prompts']} of {part['name']}" for part in results.parts)
    about = f"{results.parts[0]['model']}, simulated; documents, and their longest in tokens: {counts}."
    tables = [f"{about} {origin(results.parts)}."]
    for task, length, title, settings in TABLES:
        if (group := found.get((task, length))) is None:
            raise ResultsError(f"{results.path} has no {task} {length}")
        tried = {name: shown for name, shown in settings.items() if name in group.methods}
        tables.append(group.table(f"{title}, kept:", tried, all_kv=task == "needles"))
    return "\n\n".join(tables)
