"""Options of a request by a header, for clients whose body does not arrive as they wrote it.

SGLang's router writes bodies anew and leaves ``custom_params`` of chats and ``/generate`` out. Of headers it
passes on its own few, and those that begin with ``x-request-id-``.
"""

import msgspec

from laprox_sglang.options.values import ConfigError, shown
from laprox_sglang.ports import Json

HEADER = "x-request-id-laprox"


def with_header(custom_params: Json | None, text: str) -> Json | None:
    """``custom_params`` of a request, with the options in its header beside those in its body.

    Args:
        text: the header: a JSON object, as ``custom_params["laprox"]`` is one. An option may stand in both
            if both say the same of it.

    Raises:
        ConfigError: it is no object, or says something else than the body.
    """
    try:
        given = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(f"{HEADER}: {shown(error)}", "malformed") from None
    if not isinstance(given, dict):
        raise ConfigError(f"{HEADER} must be an object of options, not {type(given).__name__}", "malformed")
    custom = {} if custom_params is None else custom_params
    own = custom.get("laprox") or {} if isinstance(custom, dict) else None
    if not isinstance(own, dict):
        # Refused in a moment, and told why.
        return custom_params
    for name in own.keys() & given.keys():
        if own[name] != given[name]:
            raise ConfigError(
                f"{HEADER} and custom_params.laprox say different things of {shown(name)}: give one of them",
                "malformed",
            )
    return custom | {"laprox": given | own}
