"""A start of SGLang up to where weights would be loaded, to see what it would say.

``python -m laprox_tools.doctor.dry_run REPORT [FLAGS…]`` writes findings to the file REPORT, as JSON. It
needs a process of its own: a start sets hooks and environment variables, and may end in SystemExit.
"""

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from laprox_sglang.options.refusals import used_untried
from laprox_sglang.options.server import ENVIRONMENT, Config
from laprox_sglang.options.values import ConfigError, shown
from laprox_sglang.ports import PORTS
from laprox_tools.doctor.finding import Area, Finding

FLAG = "--enable-laprox"

hooks, line = Area("hooks"), Area("command line")


def main(report: str, *given: str) -> None:
    flags = without_program(list(given))
    sys.argv = ["sglang", *flags]
    findings: list[Finding] = []
    try:
        findings.extend(dry_run(flags))
    except BaseException as error:
        findings.append(hooks.error("start", one_line(error), "a start ends with this line"))
    Path(report).write_bytes(msgspec.json.encode(findings))


def without_program(flags: list[str]) -> list[str]:
    """The flags alone, of whatever part of a command line was given."""
    for start in (["sglang", "serve"], ["python", "-m", "sglang.launch_server"]):
        if flags[: len(start)] == start:
            flags = flags[len(start) :]
    return ["--model-path", *flags] if flags and not flags[0].startswith("-") else flags


def one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines() or [""]
    return shown(text[-1] if isinstance(error, SystemExit) else f"{type(error).__name__}: {text[0]}")


def dry_run(flags: list[str]) -> Iterator[Finding]:
    from sglang.srt.plugins import load_plugins

    from laprox_patches.version import check_version

    check_version()
    known = list(compare())
    yield from known
    if any(finding.status == "error" for finding in known):
        return
    load_plugins()
    from laprox_patches import arguments
    from laprox_patches.seam import SeamError, in_place, install
    from laprox_patches.seams import register_all

    if not all(map(in_place, arguments.SEAMS)):
        reason = "SGLang loads its plugins, and LaProx is not among them"
        yield hooks.error("plugin", reason, "see installation: entry points and SGLANG_PLUGINS")
        return
    if flags:
        yield from command_line(flags)
    try:
        register_all()
        install()
    except SeamError as error:
        yield hooks.error("in place", str(error), "remove the other plugin, or serve without LaProx")
    else:
        yield hooks.ok("in place", "every hook is called by SGLang")


def compare() -> Iterator[Finding]:
    """Every place of SGLang that is hooked or read, with what is known of it."""
    from laprox_patches import arguments, seams
    from laprox_patches.seam import SeamError, verify
    from laprox_patches.version import check_ports

    all_seams = (*arguments.SEAMS, *seams.SEAMS)
    checks = [partial(verify, [seam]) for seam in all_seams]
    checks += [partial(check_ports, {protocol: path}) for protocol, path in PORTS.items()]
    faults = []
    for check in checks:
        try:
            check()
        except SeamError as error:
            faults.append(hooks.error("known places", str(error), "install the SGLang that is served"))
    yield from faults
    if not faults:
        classes = len(set(PORTS.values()))
        yield hooks.ok(
            "known places", f"{len(all_seams)} functions and {classes} classes of SGLang are as known"
        )


def command_line(flags: list[str]) -> Iterator[Finding]:
    from sglang.srt.arg_groups.model_override_base import model_config_of
    from sglang.srt.arg_groups.overrides import resolved_view
    from sglang.srt.server_args import prepare_server_args

    if FLAG not in flags and ENVIRONMENT not in os.environ:
        yield line.warning("LaProx", "these flags start stock SGLang; checked as if on", f"add {FLAG}")
        flags = [*flags, FLAG]
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            args: Any = prepare_server_args(flags)
            args.resolve_once()
    except (Exception, SystemExit) as error:
        usage = said.getvalue().strip().splitlines()
        # argparse exits with a number, and has printed what is wrong.
        parsed = isinstance(error, SystemExit) and isinstance(error.code, int)
        reason = shown(usage[-1]) if parsed and usage else one_line(error)
        yield line.error("flags", reason, way_out(flags))
        return
    view, model = resolved_view(args), model_config_of(args)
    faults = list(dict.fromkeys(refused(args._laprox, view, model)))
    for fault in faults:
        flag = re.split(" does not go together| was not tried", fault)[0]
        yield line.error(flag, fault, f"leave {flag} out, or serve without {FLAG}")
    if faults:
        return
    try:
        args.check_server_args()
    except (Exception, SystemExit) as error:
        yield line.error("flags", one_line(error), "SGLang itself refuses this: change what it names")
        return
    for untried in used_untried(view):
        reason = f"was not tried with LaProx: {untried.why}"
        yield line.warning(untried.flag, reason, "report whether it works, and how")
    yield line.ok(
        "flags", f"a server would start: device {view.device}, {view.attention_backend}, {args._laprox}"
    )


def way_out(flags: list[str]) -> str:
    import torch

    if not torch.cuda.is_available() and "--device" not in flags:
        return "without a GPU a server needs --device cpu"
    return "a start ends with this line: change what it names"


def refused(config: Config, args: Any, model: Any) -> Iterator[str]:
    """All that a start with these resolved arguments would refuse, one after the other."""
    import torch

    import laprox_kernels as kernels
    from laprox_patches.arguments import check_served
    from laprox_patches.model.ranks import planned_ranks
    from laprox_sglang.options.check import check_model, faults
    from laprox_sglang.ranks import heads_of_rank

    yield from map(str, faults(args, untested=config.untested))
    for check in (partial(check_model, model), partial(check_served, config, args, model)):
        try:
            check()
        except ConfigError as error:
            yield str(error)
    if args.device != "cuda":
        return
    kv_dtype = torch.float8_e4m3fn if args.kv_cache_dtype == "fp8_e4m3" else model.dtype
    heads = heads_of_rank(model, planned_ranks(args))
    pool = torch.zeros((1, 1, heads.kv, model.head_dim), dtype=kv_dtype, device="cuda")
    shape = (1, config.longest_window, heads.query, model.head_dim)
    queries = torch.zeros(shape, dtype=model.dtype, device="cuda")
    try:
        kernels.check_serving(pool, pool, queries)
    except kernels.Unsupported as error:
        yield f"--model-path {args.model_path} does not go together with {FLAG}: {error}"


if __name__ == "__main__":
    main(*sys.argv[1:])
