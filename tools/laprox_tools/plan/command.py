"""``laprox plan``: how many requests a GPU holds, with LaProx and without, and when it pays."""

import argparse
from pathlib import Path

import msgspec

from laprox_sglang.options.server import Config
from laprox_sglang.options.values import parse_budget, parse_tokens
from laprox_sglang.views.capacity import Load
from laprox_tools import CommandError
from laprox_tools.plan.comparison import KV_ITEMSIZES, Comparison, compare
from laprox_tools.plan.estimate import Estimate
from laprox_tools.plan.model_config import Model, read_model

PROMPT, OUTPUT = 8192, 512
FLAG_NOTES = {
    "--max-running-requests": "with more, the pool runs short and SGLang takes requests back",
    "--cuda-graph-max-bs-decode": "larger batches decode without a graph; LaProx captures each size twice",
    "--mem-fraction-static": "SGLang's default less the second kind of graphs, or as given",
    "--kv-cache-dtype": "as given, for both servers",
    "--enable-hierarchical-cache": "idle histories go to host memory, and come back",
    "--hicache-write-policy": "the tier holds what the pool does not",
    "--hicache-size": "GB of host memory",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="PATH", help="a model's folder, or its config.json")
    add("--gpu-memory", type=positive, default=80, metavar="GIB", help="of the card's label (default 80)")
    add("--context", type=whole_number, help="--context-length of the server (default: the model's)")
    add("--prompt", type=whole_number, help=f"tokens of a prompt (default {PROMPT}, or half the context)")
    add("--output", type=whole_number, default=OUTPUT, help=f"tokens of an answer (default {OUTPUT})")
    add("--shared", type=int, default=0, help="first tokens that all prompts have in common (default 0)")
    add("--budget", default=str(Config().budget), help="--laprox-budget (default %(default)s)")
    add("--budget-max", help="--laprox-budget-max, of views while there is room (default: --budget)")
    add("--keep-prefix", default="0", help="tokens that stay dense: --laprox-keep-prefix (default 0)")
    add("--concurrency", type=whole_number, help="requests that come at once (default: all that fit)")
    add(
        "--conversations",
        type=whole_number,
        help="conversations whose histories are to come back, idle ones included: does a host tier pay?",
    )
    add("--kv-dtype", choices=KV_ITEMSIZES, default="auto", help="--kv-cache-dtype of both (default auto)")
    add("--mem-fraction-static", type=fraction, help="of both servers (default: SGLang's for the card)")
    add("--json", action="store_true", help="print JSON")


def positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return number


def fraction(text: str) -> float:
    number = float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be between 0 and 1")
    return number


def whole_number(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return number


def run(arguments: argparse.Namespace) -> int:
    model = read_model(arguments.model, arguments.context)
    prompt = arguments.prompt or min(PROMPT, model.context_len // 2)
    load = Load(prompt, arguments.output, arguments.shared)
    check_load(load, model)
    config = Config(
        budget=parse_budget(arguments.budget),
        budget_max=None if arguments.budget_max is None else parse_budget(arguments.budget_max),
        keep_prefix=parse_tokens(arguments.keep_prefix),
    )
    found = compare(
        model,
        arguments.gpu_memory,
        config,
        load,
        arguments.kv_dtype,
        arguments.concurrency,
        arguments.mem_fraction_static,
        arguments.conversations,
    )
    if arguments.json:
        report = {"load": load._asdict(), "comparison": found}
        print(msgspec.json.format(msgspec.json.encode(report)).decode())
    else:
        draw(found, model, load, config, arguments.gpu_memory)
    return 0


def check_load(load: Load, model: Model) -> None:
    if load.prompt + load.output > model.context_len:
        raise CommandError(
            f"--prompt {load.prompt} and --output {load.output} are more than the context of "
            f"{model.context_len}: lower them, or raise --context"
        )
    if not 0 <= load.shared < load.prompt:
        raise CommandError(f"--shared {load.shared} must be from 0 to below --prompt {load.prompt}")


def draw(found: Comparison, model: Model, load: Load, config: Config, memory: float) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    shared = f", the first {load.shared:,} shared" if load.shared else ""
    title = (
        f"{model.name} on {memory:g} GiB: prompts of {load.prompt:,} tokens{shared}, "
        f"answers of {load.output:,}, context {model.context_len:,}"
    )
    table = Table(title=title, title_justify="left", title_style="bold")
    for heading in ("", "stock", f"LaProx, budget {config.budget}"):
        table.add_column(heading, justify="right" if heading else "left")

    def row(what: str, cell: str, *values: object) -> None:
        table.add_row(what, *(cell.format(value) for value in values))

    servers: tuple[Estimate, Estimate] = found.stock, found.laprox
    row("KV of one token, bytes", "{:,}", *(side.slot_bytes for side in servers))
    row("weights, GB", "{:.1f}", *[found.weights / 1e9] * 2)
    row("--mem-fraction-static", "{:g}", *(side.fraction for side in servers))
    row("LaProx reserves, GB", "{:.2f}", *(sum(side.reserved.values()) / 1e9 for side in servers))
    row("KV pool, slots (one a token)", "{:,}", *(side.slots for side in servers))
    row("slots of a request at its end", "{:,}", *(side.held for side in servers))
    row("requests at once", "{:,}", *(side.requests for side in servers))
    row(f"read by a decode step of {found.compared:,}, GB", "{:.1f}", *(x.step_bytes / 1e9 for x in servers))
    console.print(table)
    console.print(f"Weights: {model.weights_from}.", style="dim")
    for line in found.conclusions:
        console.print(line)
    if found.flags:
        console.print("\nFlags for the server with LaProx:")
    for flag, value in found.flags.items():
        console.print(f"  {flag} {value}", style="bold", end="")
        console.print(f"  {FLAG_NOTES[flag]}", style="dim")
