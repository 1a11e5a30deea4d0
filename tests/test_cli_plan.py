"""``laprox plan``: its figures beside the benchmark's record, SGLang's own rules and real checkpoints."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from sglang.srt.mem_cache import kv_cache_configurator as configurator
from sglang.srt.utils.hf_transformers import get_context_length
from transformers import PretrainedConfig

from laprox_patches import version
from laprox_patches.seam import SeamError
from laprox_sglang.options.server import Config
from laprox_sglang.projection import reading_bytes
from laprox_sglang.views.capacity import Load, plan_of_load
from laprox_sglang.views.memory import most_running, table
from laprox_tools import CommandError
from laprox_tools.__main__ import SUMMARIES, main
from laprox_tools.needle import MODEL_PATH
from laprox_tools.plan.comparison import compare
from laprox_tools.plan.model_config import read_model
from laprox_tools.plan.sglang_defaults import defaults, laprox_static_fraction

ROOT = Path(__file__).resolve().parent.parent
LLAMA_8B = ROOT / "benchmarks" / "models" / "llama-3.1-8b"
RECORDS = {
    card: json.loads((ROOT / "benchmarks" / "results" / f"serving-{card}.json").read_text())
    for card in ("h100", "h200")
}


def look(memory=80, context=40_960, load=None, concurrency=None, fraction=None, kv_dtype="auto",
         conversations=None, **options):  # fmt: skip
    model, load = read_model(LLAMA_8B, context), load or Load(8192, 512)
    config = Config(**{"budget": 0.05} | options)
    return compare(model, memory, config, load, kv_dtype, concurrency, fraction, conversations)


def test_a_host_tier_pays_where_histories_do_not_fit():
    load = Load(32_768, 512)
    few = look(141, load=load, concurrency=8, conversations=8)
    assert few.conclusions[-1].startswith("A host tier gains nothing: beside the views of 8")
    assert "--hicache-size" not in few.flags
    many = look(141, load=load, concurrency=8, conversations=60)
    fit = int(re.search(r"room for (\d+) histories", many.conclusions[-1])[1])
    assert 20 <= fit < 60 and f"{60 - fit} of 60 would be computed again" in many.conclusions[-1]
    size = int(many.flags["--hicache-size"])
    assert size == math.ceil((60 - fit) * 32_768 * many.laprox.slot_bytes / 1e9)
    assert many.flags["--hicache-write-policy"] == "write_back"


@pytest.mark.parametrize(("chip", "memory"), [("h100", 80), ("h200", 141)])
def test_the_pool_is_the_one_that_was_measured(chip, memory):
    servers = RECORDS[chip]["servers"]["full"]
    settings = servers["stock"]["settings"]
    found = look(
        memory,
        settings["context_length"],
        concurrency=settings["cuda_graph_max_bs_decode"],
        fraction=settings["mem_fraction_static"],
    )
    assert found.stock.slots == pytest.approx(servers["stock"]["slots"], rel=0.01)
    # What LaProx reserves hardly depends on what the card has free: the difference is nearly exact. When
    # this was measured it reserved nothing for steps without a graph, and nothing to read W_O.
    context, most = settings["context_length"], most_running(found.laprox.slots, settings["context_length"])
    since = table(most, context, 32 * 8) + reading_bytes(32, 128, 4096)
    less = servers["stock"]["slots"] - servers["laprox"]["slots"] + since // found.laprox.slot_bytes
    assert found.stock.slots - found.laprox.slots == pytest.approx(less, rel=0.02)


@pytest.mark.parametrize(
    ("memory", "chunk", "rows", "prefill_graphs", "fraction"),
    [
        (16, 2048, 8, 42, 0.752),
        (24, 4096, 48, 50, 0.704),
        (40, 4096, 32, 50, 0.823),
        (80, 8192, 256, 58, 0.83),
        (141, 8192, 256, 58, 0.904),
        (192, 16_384, 512, 74, 0.864),
    ],
)
def test_defaults_are_those_of_the_card(memory, chunk, rows, prefill_graphs, fraction):
    """What SGLang 0.5.23 chooses: where another version chooses otherwise, it shows here."""
    found = defaults(memory)
    graphs = found.args.cuda_graph_config
    assert (found.args.chunked_prefill_size, found.graph_rows) == (chunk, rows)
    assert len(graphs.prefill.bs) == prefill_graphs and max(graphs.decode.bs) == rows
    assert found.static_fraction == fraction
    # The second family of graphs: 2 MiB a row.
    second = fraction - laprox_static_fraction(memory, rows)
    assert second == pytest.approx(2 * rows / 1024 / memory, abs=0.001)


def test_defaults_follow_the_rows_that_are_asked_for():
    found = defaults(80, 10)
    assert found.graph_rows == max(found.args.cuda_graph_config.decode.bs) == 10
    assert found.static_fraction > defaults(80).static_fraction


def test_another_sglang_is_one_line(monkeypatch, capsys):
    def other():
        raise SeamError("SGLang 0.5.24 is not served")

    monkeypatch.setattr(version, "check_version", other)
    defaults.cache_clear()
    code, out, err = run(capsys, "--model", LLAMA_8B)
    assert (code, out, err) == (1, "", "laprox plan: SGLang 0.5.24 is not served\n")


def test_most_running_is_sglangs():
    for slots, context in ((10**5, 131_072), (10**6, 131_072), (10**6, 4096)):
        stand_in = SimpleNamespace(
            model_config=SimpleNamespace(context_len=context), attn_dp_size=1, mambaish_config=None
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(configurator, "get_schedule", lambda: SimpleNamespace(max_running_requests=None))
            said = configurator.KVCacheConfigurator.resolve_max_num_reqs(stand_in, slots)
        assert said == most_running(slots, context)


def test_parameters_are_estimated_from_the_shapes(tmp_path):
    assert read_model(LLAMA_8B).weights == pytest.approx(2 * 8.03e9, rel=0.005)
    counted = read_model(MODEL_PATH)
    assert counted.weights == (MODEL_PATH / "model.safetensors").stat().st_size
    (tmp_path / "config.json").write_text((MODEL_PATH / "config.json").read_text())
    estimated = read_model(tmp_path)
    assert estimated.weights == pytest.approx(counted.weights, rel=0.01)
    assert "estimated" in estimated.weights_from and counted.weights_from == "its files"


def test_weights_that_are_there_twice_count_once(tmp_path):
    """Mistral's repositories have a consolidated.safetensors beside the shards."""
    (tmp_path / "config.json").write_text((LLAMA_8B / "config.json").read_text())
    for name, size in (
        ("consolidated.safetensors", 30),
        ("model-1.safetensors", 20),
        ("model-2.safetensors", 10),
    ):
        (tmp_path / name).write_bytes(bytes(size))
    assert read_model(tmp_path).weights == 30
    for file in tmp_path.glob("model-*"):
        file.unlink()
    (tmp_path / "consolidated.safetensors").write_bytes(bytes(31))
    assert read_model(tmp_path).weights == 31


@pytest.mark.parametrize(
    "changes", [{"num_hidden_layers": None}, {"num_key_value_heads": "many"}, {"rope_scaling": "yes"}]
)
def test_a_configuration_of_another_form_is_one_line(tmp_path, changes):
    with pytest.raises(CommandError, match="is not as a model's: ") as error:
        read_model(config_of(tmp_path / "config.json", **changes))
    assert "\n" not in str(error.value)


def config_of(path: Path, **changes) -> Path:
    config = json.loads((LLAMA_8B / "config.json").read_text()) | changes
    path.write_text(json.dumps(config))
    return path


def test_experts_and_quantized_weights_are_counted(tmp_path):
    dense = read_model(config_of(tmp_path / "a.json")).weights
    # 8 experts in the place of one MLP: Mixtral's 46.7 billion with its vocabulary.
    mixtral = config_of(tmp_path / "b.json", num_local_experts=8, vocab_size=32_000)
    assert read_model(mixtral).weights == pytest.approx(2 * 46.7e9, rel=0.005)
    four_bits = config_of(tmp_path / "c.json", quantization_config={"quant_method": "awq", "bits": 4})
    assert read_model(four_bits).weights == dense // 4
    with pytest.raises(CommandError, match="quantized"):
        read_model(config_of(tmp_path / "d.json", quantization_config={"quant_method": "other"}))


@pytest.mark.parametrize(
    ("scaling", "context"),
    [
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}, 131_072),
        ({"rope_type": "linear", "factor": 2.0}, 262_144),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}, 131_072),
        (None, 131_072),
    ],
)
def test_the_context_is_read_as_sglang_reads_it(tmp_path, scaling, context):
    path = config_of(tmp_path / "config.json", rope_scaling=scaling)
    stock = PretrainedConfig()
    stock.rope_scaling, stock.max_position_embeddings = scaling, 131_072
    assert read_model(path).context_len == get_context_length(stock) == context
    # As transformers 5 writes it.
    path = config_of(tmp_path / "config.json", rope_scaling=None, rope_parameters=scaling)
    assert read_model(path).context_len == context


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"kv_lora_rank": 512}, "latent"),
        ({"sliding_window": 4096}, "sliding-window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear-attention"),
        ({"is_encoder_decoder": True}, "encoder"),
        ({"vision_config": {}}, "image"),
    ],
)
def test_a_model_that_is_not_served_is_named(tmp_path, changes, fault):
    with pytest.raises(CommandError, match=fault) as error:
        read_model(config_of(tmp_path / "config.json", **changes))
    assert "\n" not in str(error.value)
    read_model(config_of(tmp_path / "config.json", sliding_window=4096, use_sliding_window=False))
    read_model(config_of(tmp_path / "config.json", layer_types=["full_attention"] * 32))


def test_a_model_that_sees_is_read_as_what_it_reads_with():
    path = ROOT / "tests" / "models" / "qwen2_5_vl"
    model = read_model(path)
    assert (model.num_hidden_layers, model.kv_heads, model.head_dim, model.context_len) == (2, 1, 32, 512)
    assert model.weights_from.endswith("without what sees")
    with pytest.raises(CommandError, match="describes no text model"):
        read_model(path.with_name("llava"))


def test_room_and_speed_pay_or_do_not():
    full = look()
    assert full.laprox.requests > 5 * full.stock.requests and full.reason is None
    assert [line.split(":")[0] for line in full.conclusions[:2]] == ["Pays by room", "Pays by speed"]
    few = look(concurrency=4, load=Load(1000, 500))
    assert [line.split(":")[0] for line in few.conclusions[:2]] == ["No gain by room", "Little gain by speed"]
    assert few.compared == 4 and few.flags["--max-running-requests"] == "4"
    answers = look(load=Load(8192, 4))
    assert "scoring" in answers.conclusions[1]
    short = look(load=Load(200, 500))
    assert short.reason == "short" and short.conclusions[0].startswith("Does not pay: ")
    assert short.stock.requests >= short.laprox.requests > 0


def test_what_is_compared_reads_what_it_says():
    found = look(concurrency=10)
    weights, slot = found.weights, found.stock.slot_bytes
    assert slot == 131_072
    assert found.stock.step_bytes == weights + 10 * (8192 + 256) * slot
    assert found.laprox.step_bytes == weights + 10 * (410 + 256) * slot
    # In 8 bits both read half, and have room for twice as much.
    halved = look(concurrency=10, kv_dtype="fp8_e4m3")
    for half, full in ((halved.stock, found.stock), (halved.laprox, found.laprox)):
        assert half.step_bytes - weights == (full.step_bytes - weights) // 2
    assert halved.stock.slots == pytest.approx(2 * found.stock.slots, abs=1)
    assert halved.laprox.slots == pytest.approx(2 * found.laprox.slots, rel=0.01)
    assert halved.flags["--kv-cache-dtype"] == "fp8_e4m3" and "--kv-cache-dtype" not in found.flags
    # What scoring takes is more of its steps.
    few = Load(8192, 12)
    assert "scoring" in look(load=few, kv_dtype="fp8_e4m3").conclusions[1] not in look(load=few).conclusions


def test_two_budgets_have_two_capacities():
    least, most, both = look(), look(budget=0.3), look(budget_max=0.3)
    [said] = [line for line in both.conclusions if line.startswith("Two budgets")]
    plans = [plan_of_load(Config(budget=budget, keep_prefix=0), Load(8192, 512)) for budget in (0.05, 0.3)]
    slots = [f"{plan.least:,}" for plan in plans]
    assert f"down to {slots[0]} at {both.laprox.requests:,}." in said and f"views of {slots[1]} slots" in said
    # What views know of their scores, to shrink by, takes some of the pool.
    roomy = int(said.split()[4].replace(",", ""))
    at_once = [found.laprox.requests for found in (most, both, least)]
    assert 0.95 * at_once[0] < roomy <= at_once[0] < at_once[1] <= at_once[2]
    assert not any(line.startswith("Two budgets") for line in least.conclusions)


def test_a_context_that_is_not_needed_costs_memory_and_is_said():
    long, fitting = look(context=131_072), look(context=16_384)
    assert not any("--context-length" in line for line in fitting.conclusions)
    [said] = [line for line in long.conclusions if "--context-length 16384" in line]
    for found in (long, fitting):
        assert f"{sum(found.laprox.reserved.values()) / 1e9:.2f}" in said


def test_a_card_that_is_too_small():
    with pytest.raises(CommandError, match="leave no room"):
        look(16)
    tight = look(24, context=131_072, budget=0.2)
    assert tight.laprox.requests == 0 and not tight.flags
    assert tight.conclusions[0].startswith("Does not fit: ")


def run(capsys, *flags) -> tuple[int, str, str]:
    code = main(["plan", *map(str, flags)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_prints_a_table_or_json(capsys):
    flags = ("--model", LLAMA_8B, "--context", 40_960, "--prompt", 32_768, "--budget", 0.05)
    code, out, err = run(capsys, *flags, "--json")
    found = json.loads(out)
    assert code == 0 and not err and found["load"] == {"prompt": 32_768, "output": 512, "shared": 0}
    code, out, err = run(capsys, *flags)
    assert code == 0 and not err
    assert f"{found['comparison']['stock']['slots']:,}" in out
    assert f"--max-running-requests {found['comparison']['laprox']['requests']}" in out
    assert "Pays by room" in out and "8.03 billion parameters" in out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--model", "/nowhere"), "No such file"),
        (("--model", ROOT / "pyproject.toml"), "is not JSON"),
        (("--model", ROOT / "benchmarks" / "results" / "checks-h200.json"), "no text model"),
        (("--model", LLAMA_8B, "--prompt", 131_072), "more than the context of 131072"),
        (("--model", LLAMA_8B, "--shared", 8192), "--shared 8192"),
        (("--model", LLAMA_8B, "--budget", "half"), "'half' is not a number"),
        (("--model", LLAMA_8B, "--keep-prefix", "-1"), "keep-prefix"),
        (("--model", LLAMA_8B, "--gpu-memory", "12"), "leave no room"),
    ],
)
def test_bad_input_gets_one_line(flags, said, capsys):
    code, out, err = run(capsys, *flags)
    assert code == 1 and not out
    assert err.startswith("laprox plan: ") and said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "flag", ["--prompt=0", "--output=-1", "--gpu-memory=nan", "--mem-fraction-static=1.2", "--kv-dtype=int3"]
)
def test_numbers_out_of_range_are_usage(flag, capsys):
    with pytest.raises(SystemExit):
        run(capsys, "--model", LLAMA_8B, flag)
    assert flag.partition("=")[0] in capsys.readouterr().err.splitlines()[-1]


def test_help_waits_for_nothing():
    code = (
        "import sys; from laprox_tools.__main__ import main\n"
        "try: main(['--help'])\n"
        "finally: print(sorted({'torch', 'sglang', 'rich', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]"
    assert all(f"    {name} " in done.stdout for name in SUMMARIES)
