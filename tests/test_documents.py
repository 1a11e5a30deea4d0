"""What the documents say of the code is what the code is. Their commands run in test_server_documents."""

import ast
import re
import subprocess
from argparse import ArgumentParser
from collections import Counter
from importlib.util import find_spec
from types import SimpleNamespace

import msgspec
import pytest
import torch
from sglang_router.launch_router import parse_router_args

from documents import LINK, OUTPUT, ROOT, anchors, blocks, documents, pages, prose, quoted, rows, section
from laprox_kernels.gpu.support import GROUPS, HEAD_DIMS, check
from laprox_patches import arguments, seams, version
from laprox_patches.flags import HELP, add_flags
from laprox_sglang.options.refusals import ENVIRONMENT_REFUSALS, REFUSALS, UNTRIED
from laprox_sglang.options.request import Options
from laprox_sglang.options.server import Config
from laprox_sglang.options.values import FEWEST_SLOTS, REFUSED, ConfigError, budget_slots
from laprox_sglang.report.events import Pruned, Released, Retracted, Shrunk, Start
from laprox_sglang.report.facts import Cached, request_facts
from laprox_sglang.report.metrics import METRICS as METRICS_OF_A_SERVER
from laprox_sglang.report.refused import Refused
from laprox_sglang.report.reporter import Reporter
from laprox_sglang.report.totals import HOW_RELEASED
from laprox_sglang.scorers import SCORERS
from laprox_sglang.scorers.allocators import ALLOCATORS
from laprox_sglang.views.capacity import Load, plan_of_load, viewed, whole
from laprox_sglang.views.memory import PREFILL_REQUESTS
from laprox_sglang.views.plan import REASONS, Plan
from laprox_sglang.views.state import Outcome

DOCS = ROOT / "docs"
FLAGS, OPERATING, ARCHITECTURE = DOCS / "flags.md", DOCS / "operating.md", DOCS / "architecture.md"
ON_A_GPU = DOCS / "on-a-gpu.md"
TROUBLE, QUALITY, METRICS = DOCS / "troubleshooting.md", DOCS / "quality.md", DOCS / "metrics.md"
# What architecture.md calls the rooms; all else lies in laprox_sglang.
ROOMS = {
    "patches": "patches/laprox_patches",
    "kernels": "kernels/laprox_kernels",
    "tools": "tools/laprox_tools",
    "tests": "tests",
    "benchmarks": "benchmarks",
}


def test_the_readme_is_short() -> None:
    """Counted in characters: a bound on lines alone is kept by writing longer lines."""
    text = (ROOT / "README.md").read_text()
    assert len(text) <= 12_500
    assert [line for line in text.splitlines() if len(line) > 150] == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page) -> None:
    for link in LINK.findall(prose(page)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(ROOT), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


@pytest.mark.parametrize("page", documents(), ids=lambda page: str(page.relative_to(ROOT)))
def test_code_is_in_blocks_that_say_what_they_are(page) -> None:
    assert {block.language for block in blocks(page)} <= {"bash", "python", *OUTPUT}
    # What is only indented would be run by nobody.
    assert not re.search(r"^ {4,}(laprox|python|pip|make|curl|sglang) ", prose(page), re.MULTILINE)
    assert prose(page).count("```") == 0


def test_every_flag_is_there_with_its_default() -> None:
    parser = ArgumentParser()
    add_flags(None, parser)
    known = set(re.findall(r"--[\w-]*laprox[\w-]*", parser.format_help()))
    told = {row[0].strip("`"): row for row in rows(FLAGS) if row[0].startswith("`--")}
    assert set(told) == known
    for field in msgspec.structs.fields(Config):
        _, default, bounds, _ = told["--laprox-" + field.name.replace("_", "-")]
        value = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        depends = {"floor": "of the allocator", "budget_max": "of `--laprox-budget`"}
        assert default == depends.get(field.name, str(value or "off")), field.name
        check_bounds(field.name, bounds)
    floor = told["--laprox-floor"][3]
    for name, allocation in ALLOCATORS.items():
        assert f"{allocation.floor:g} with `{name}`" in floor or name == "uniform"
    assert f"--prefill-max-requests {PREFILL_REQUESTS}`" in FLAGS.read_text()


def check_bounds(name: str, bounds: str) -> None:
    """The option is refused beyond its bounds, and not for them at them."""
    if not (found := re.fullmatch(r"(?:`(\w+)`, or )?(\d+) to (\d+)", bounds)) or name == "floor":
        return
    least, most = map(int, found.groups()[1:])
    wrong = f"must be a whole number from {least} to {most}"
    if (word := found[1]) is not None:
        wrong = f'is not served; give "{word}" or a number of tokens, {least} to {most}'
    for value in (least - 1, most + 1):
        with pytest.raises(ConfigError, match=wrong):
            Config(**{name: value})
    for value in (least, most):
        try:
            Config(**{name: value})
        except ConfigError as error:
            assert "whole number" not in str(error) and "is not served" not in str(error)


def test_small_views_have_the_window_that_the_flags_page_says() -> None:
    said = next(row[3] for row in rows(FLAGS) if row[0] == "`--laprox-window`")
    found = re.search(
        r"`auto` are (\d+), or (\d+) where the view has less than (\d+) slots beside its sinks", said
    )
    usual, small, below = map(int, found.groups())
    config = Config()
    assert {config.window_of(slots) for slots in range(below, 10 * below)} == {usual}
    assert {config.window_of(slots) for slots in range(1, below)} == {small}
    assert found[0].removeprefix("`auto` are ") in HELP["window"]
    # Elsewhere, too.
    smallest = f"{usual + config.sink_tokens} slots"
    assert f"`auto` counted as {usual}: {smallest} with the defaults" in FLAGS.read_text()
    assert f"the smallest view ({smallest} by default)" in OPERATING.read_text()
    assert f"the last {usual} tokens of a prompt (or `--laprox-window`)" in (DOCS / "metrics.md").read_text()


def test_a_fraction_has_the_least_that_the_pages_say() -> None:
    said = next(row[3] for row in rows(FLAGS) if row[0] == "`--laprox-budget`")
    assert f"a fraction of what it stands for, and {FEWEST_SLOTS} slots at least" in said
    assert f"and {FEWEST_SLOTS} tokens at least" in HELP["budget"]
    text = OPERATING.read_text()
    found = re.search(
        r"to (\d+) of them at least: ([\d.]+) is a tenth of prompts from\s(\d+) tokens on", text
    )
    least, fraction, tokens = int(found[1]), float(found[2]), int(found[3])
    assert least == FEWEST_SLOTS == budget_slots(fraction, tokens)
    assert budget_slots(fraction, tokens + 1) > least == budget_slots(fraction, tokens - 100)
    assert f"any fraction of no more than {least} tokens" in text


def test_every_option_of_a_request_is_there() -> None:
    told = {row[0].strip("`"): row[1] for row in rows(FLAGS) if row[1] in ("yes", "no")}
    allowed = Config().request_options
    fields = [field.name for field in msgspec.structs.fields(Options)]
    assert told == {name: "yes" if name in allowed else "no" for name in fields}


def test_the_recipe_for_eight_gpus_fits_together() -> None:
    """The router has these flags, and its list of servers is the eight that are started."""
    [server] = [block.code for block in blocks(OPERATING) if "--base-gpu-id" in block.code]
    [router] = [line for line in OPERATING.read_text().splitlines() if "sglang_router.launch_router" in line]
    told = subprocess.run(["bash", "-c", f"echo {router}"], capture_output=True, text=True, check=True).stdout
    given = parse_router_args(told.split()[3:])
    gpu, port = (int(re.search(rf"--{flag} (\d+)", server)[1]) for flag in ("base-gpu-id", "port"))
    ports = [int(url.rpartition(":")[2]) for url in given.worker_urls]
    assert ports == list(range(port - gpu, port - gpu + 8)) and given.port not in ports
    assert (given.host, given.prometheus_host) == ("127.0.0.1", "127.0.0.1")


def test_what_thinking_costs_is_what_the_plan_computes() -> None:
    text = section(OPERATING, "Reasoning models")
    prompt, budget = re.search(r"prompt of ([\d,]+) tokens and a budget of ([\d.]+)", text).groups()
    table = [tuple(map(number, row)) for row in rows(OPERATING) if f"| {' | '.join(row)} |" in text]
    short = re.search(
        r"prompt of ([\d,]+) tokens with ([\d,]+) tokens of thinking pins ([\d,]+) slots whole and "
        r"([\d,]+) with a view: ([\d.]+) times",
        " ".join(text.split()),
    )
    told = [(number(prompt), *row) for row in table if row[0]]
    assert len(told) == 4
    for tokens, answer, slots, with_view, times in [*told, tuple(map(number, short.groups()))]:
        load = Load(int(tokens), int(answer))
        config = Config(budget=float(budget), keep_prefix=0)
        held, viewed_slots = whole(load).each, viewed(load, plan_of_load(config, load)).each
        assert (slots, with_view, times) == (held, viewed_slots, round(held / viewed_slots, 1))
    first, third = told[0], told[2]
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"{first[0]:,} tokens with an answer of {first[1]:,} pins {first[4]} times fewer" in readme
    assert f"with {third[1]:,} tokens of thinking {third[4]} times" in readme


def number(text: str) -> float:
    """What a cell says; 0 if it is no number."""
    text = text.replace(",", "")
    if not re.fullmatch(r"[\d.]+", text):
        return 0
    return float(text) if "." in text else int(text)


def test_models_that_pass_by_their_shapes_do() -> None:
    shapes = [row for row in rows(ON_A_GPU) if re.fullmatch(r"\d+ / \d+", row[1])]
    assert len(shapes) >= 10
    for name, heads, group, dim in shapes:
        query, kv = map(int, heads.split(" / "))
        assert query == int(group) * kv, name
        check("decode", torch.empty(1, kv, int(dim)), torch.empty(1, query, int(dim)))
    served = re.search(r"head size of (\d+) or (\d+) and (\d+) to (\d+) query heads", prose(ON_A_GPU))
    assert served and tuple(map(int, served.groups())) == (*HEAD_DIMS, min(GROUPS), max(GROUPS))


def test_every_method_is_there() -> None:
    told = quoted(QUALITY.read_text())
    assert {*SCORERS, *ALLOCATORS} <= told


def facts_known() -> set[str]:
    plan = Plan(0, 10, 10, 0, 1, "short")
    whole = request_facts(Outcome(plan, None, 10), 10, Cached(0), False)
    counts = SimpleNamespace(there=True, tolist=lambda: [0, 4, 4], tobytes=bytes)
    view = SimpleNamespace(slots=10, host_counts=counts, kept_cells=4, heads=1, positions=counts)
    return {*whole, *request_facts(Outcome(plan._replace(reason=None), view, 10), 10, Cached(0), True)}


def test_every_fact_and_reason_is_there() -> None:
    told = quoted(section(OPERATING, "What a request is told"))
    assert "kept_positions" in facts_known() <= told
    reasons = [row[0].strip("`") for row in rows(OPERATING)]
    assert all(reasons.count(reason) == 1 for reason in REASONS)


def test_every_total_is_there() -> None:
    told = quoted(section(OPERATING, "Watching it"))
    assert {*Reporter().to_dict(), *HOW_RELEASED, *REFUSED} <= told
    assert {*REFUSED, *HOW_RELEASED} - {"retracted"} <= quoted(METRICS.read_text())


def test_every_metric_and_event_is_there() -> None:
    told = quoted(METRICS.read_text())
    assert {*(metric.name for metric in METRICS_OF_A_SERVER), Refused.NAME} <= told
    told = quoted((DOCS / "events.md").read_text())
    for event in (Start, Pruned, Shrunk, Retracted, Released):
        assert {event.__struct_config__.tag, *event.__struct_fields__} <= told


def test_every_refusal_is_there_with_its_reason() -> None:
    cannot, tried = (section(TROUBLE, kind) for kind in ("Cannot be right", "Not tried"))
    told = {name: row for row in rows(TROUBLE) for name in quoted(row[0])}
    for refusal in (*REFUSALS, *UNTRIED):
        assert told[refusal.flag][1] == refusal.why
        # Each is in the table of its kind.
        own, other = (tried, cannot) if refusal in UNTRIED else (cannot, tried)
        assert own.count(f"| `{refusal.flag}`") + own.count(f", `{refusal.flag}`") == 1
        assert f"`{refusal.flag}`" not in other
    for name, why in ENVIRONMENT_REFUSALS.items():
        assert told[name][1] == why and f"`{name}`" in cannot


def templates() -> list[str]:
    """Every text in the code, with ``…`` for what is filled in."""
    found = []
    for folder in ("laprox_sglang", "patches", "kernels", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [getattr(part, "value", None) for part in node.values]
                    found.append("".join(part if isinstance(part, str) else "…" for part in parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def test_messages_are_those_of_the_code() -> None:
    code = templates()
    told = [text for row in rows(TROUBLE) for text in quoted(row[0])]
    messages = [text for text in told if "…" in text or (" " in text and text[0] != "-")]
    assert len(messages) > 40
    for message in messages:
        pieces = [re.escape(piece) for piece in message.split("…") if piece.strip()]
        pattern = re.compile(".*".join(pieces), re.DOTALL)
        assert any(pattern.search(text) for text in code), message


def test_paths_and_names_in_the_architecture_exist() -> None:
    named = [text for text in quoted(ARCHITECTURE.read_text()) if re.fullmatch(r"[\w/]+\.py(:[\w.]+)?", text)]
    named.remove("file.py:name")
    assert len(named) > 60
    for text in named:
        path, _, name = text.partition(":")
        first, _, rest = path.partition("/")
        file = ROOT / ROOMS[first] / rest if first in ROOMS else ROOT / "laprox_sglang" / path
        assert file.is_file(), text
        for part in filter(None, name.split(".")):
            assert re.search(rf"\b(def|class) {part}\b|\bself\.{part}\b", file.read_text()), text


def test_every_module_of_a_page_exists() -> None:
    for page in pages():
        text = page.read_text()
        for module in re.findall(r"python -m (benchmarks[\w.]*\w)", text):
            assert find_spec(module), f"{page.name}: {module}"
        for path in re.findall(r"\btests/[\w/]+\.py", text):
            assert (ROOT / path).is_file(), f"{page.name}: {path}"


def test_every_hook_is_in_the_architecture() -> None:
    told = Counter(re.findall(r"`([^`\n]+)`", section(ARCHITECTURE, "Where SGLang is hooked")))
    for seam in (*arguments.SEAMS, *seams.SEAMS):
        assert told[".".join(seam.target.split(".")[-2:])] == 1, seam.target


def test_the_ports_are_in_the_architecture() -> None:
    shown = ARCHITECTURE.read_text().split("<!-- ports -->\n")[1].split("\n<!-- end of ports -->")[0]
    assert shown == version.table(), "put in what python -m laprox_patches.version prints"


def test_sglang_is_imported_where_the_architecture_says() -> None:
    package = ROOT / "laprox_sglang"
    importing = {
        path.relative_to(package).parts[0]
        for path in package.rglob("*.py")
        if re.search(r"^\s*(from|import) sglang\b", path.read_text(), re.MULTILINE)
    }
    [said] = re.findall(r"SGLang is imported in (.*?); nowhere", ARCHITECTURE.read_text(), re.DOTALL)
    assert importing | {"patches", "tools"} == {name.strip("/") for name in quoted(said)}
