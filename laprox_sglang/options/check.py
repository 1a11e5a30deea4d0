"""A server's arguments and its model, looked at before anything is loaded."""

import os
from collections.abc import Iterator, Mapping, Sequence

from laprox_sglang.options.refusals import (
    ATTENTION_BACKEND,
    ATTENTION_BACKENDS,
    BACKENDS_IN_WORDS,
    ENVIRONMENT_REFUSALS,
    OFF,
    REFUSALS,
    RUST_SERVER,
    Untried,
    used_untried,
)
from laprox_sglang.options.values import ConfigError
from laprox_sglang.ports import ModelConfig, ServerArgs

NOBODY_LOOKS = (
    "SGLang's Rust server and the gRPC servicer of its router render chats themselves, so nobody would know "
    "where instructions are: give a number of tokens, 0 for none"
)


def front_checks(args: ServerArgs, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether all requests come by SGLang's tokenizer manager, which checks them and seals their options.

    SGLang's Rust server, and the gRPC servicer of its router, take its place, and know nothing of LaProx.

    Args:
        args: a resolved view of SGLang's ``ServerArgs``.
    """
    return not (args.smg_grpc_mode or is_on(RUST_SERVER, environ))


def is_on(name: str, environ: Mapping[str, str]) -> bool:
    return environ.get(name, "").lower() not in OFF


def refuse(flag: str, why: str) -> ConfigError:
    return ConfigError(f"{flag} does not go together with --enable-laprox: {why}")


def check_arguments(
    args: ServerArgs, environ: Mapping[str, str] = os.environ, untested: Sequence[str] = ()
) -> None:
    """Checks resolved server arguments.

    Args:
        args: a resolved view of SGLang's ``ServerArgs``; the record itself holds what was typed.
        untested: names of what may be used although it was not tried.

    Raises:
        ConfigError: names the first flag that is refused, and why.
    """
    for fault in faults(args, environ, untested):
        raise fault


def faults(
    args: ServerArgs, environ: Mapping[str, str] = os.environ, untested: Sequence[str] = ()
) -> Iterator[ConfigError]:
    """All that ``check_arguments`` refuses, in the order in which somebody would change it."""
    if args.device not in ATTENTION_BACKENDS:
        yield refuse(f"--device {args.device}", f"its kernels serve {', '.join(ATTENTION_BACKENDS)} only")
        return
    mixed, cannot = list(mixed_backends(args)), list(never_right(args, environ))
    left = [untried for untried in used_untried(args) if untried.name not in untested]
    # The way to try all of it is said at once, and only where it leads to a start.
    names = () if mixed or cannot else tuple(dict.fromkeys((*untested, *(untried.name for untried in left))))
    yield from mixed
    # SGLang may have set other arguments, such as a page size, because of the backend.
    if ATTENTION_BACKEND in left:
        left.remove(ATTENTION_BACKEND)
        yield not_tried(ATTENTION_BACKEND, args, names)
    yield from cannot
    for untried in left:
        yield not_tried(untried, args, names)


def never_right(args: ServerArgs, environ: Mapping[str, str]) -> Iterator[ConfigError]:
    for refusal in REFUSALS:
        if refusal.applies(args):
            yield refuse(refusal.flag, refusal.why)
    for name, why in ENVIRONMENT_REFUSALS.items():
        if is_on(name, environ):
            yield refuse(name, why)
    if args.cuda_graph_config.prefill.backend == "full":
        yield refuse("--cuda-graph-backend-prefill full", "its graphs hide the queries; use breakable")


def mixed_backends(args: ServerArgs) -> Iterator[ConfigError]:
    """SGLang puts two backends behind one of another kind, which does not say what it runs when."""
    for phase in ("prefill", "decode"):
        backend = getattr(args, f"{phase}_attention_backend")
        if backend not in (None, args.attention_backend):
            served = backend in ATTENTION_BACKENDS[args.device]
            choice = backend if served else BACKENDS_IN_WORDS[args.device]
            yield refuse(
                f"--{phase}-attention-backend {backend}",
                f"prefill and decode must share one backend; give --attention-backend {choice} alone",
            )


def not_tried(untried: Untried, args: ServerArgs, names: Sequence[str]) -> ConfigError:
    flag = f"{untried.flag} {untried.value(args)}" if untried.value else untried.flag
    instead = untried.instead(args) if untried.instead else "leave it out"
    way = f", or try it: --laprox-untested {','.join(names)}" if names else ""
    return ConfigError(f"{flag} was not tried with --enable-laprox: {untried.why}; {instead}{way}")


def check_elastic(args: ServerArgs) -> None:
    """Checks resolved arguments of a server whose views may shrink.

    Raises:
        ConfigError: names the flag that they cannot shrink with, and why.
    """
    for flag, given, why in (
        ("--disable-radix-cache", args.disable_radix_cache, "without a cache SGLang never evicts anything"),
        (
            f"--tensor-parallel-size {args.tp_size}",
            args.tp_size > 1,
            "what a rank keeps depends on the scores of the others, which it would have to ask for",
        ),
    ):
        if given:
            raise ConfigError(
                f"{flag} does not go together with --laprox-budget-max: no view could shrink, as {why}; "
                "leave --laprox-budget-max out"
            )


def check_model(config: ModelConfig) -> None:
    """Checks a model's architecture, before its weights are loaded.

    Args:
        config: SGLang's ``ModelConfig``.

    Raises:
        ConfigError: names what the model has that is not served.
    """
    from sglang.srt.configs.hybrid_arch import mambaish_config
    from sglang.srt.configs.model_config import AttentionArch

    faults = {
        "multi-head latent attention": config.attention_arch != AttentionArch.MHA,
        "sliding-window layers": config.is_hybrid_swa,
        "linear-attention or state-space layers": mambaish_config(config) is not None,
        "cross attention": config.is_encoder_decoder,
        "chunked local attention": bool(config.attention_chunk_size),
        "attention sinks": bool(config.has_attention_sinks),
        "no decoding": not config.is_generation,
    }
    for fault, present in faults.items():
        if present:
            raise refuse(f"--model-path {config.model_path}", f"the model has {fault}, which is not scored")
