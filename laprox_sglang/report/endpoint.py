"""Where events are published: an address that is looked at before anything is loaded."""

import ipaddress
import os
import socket
import stat

from laprox_sglang.options.values import ConfigError, shown

FLAG = "--laprox-events"
FORMS = "give tcp://127.0.0.1:PORT or ipc:///PATH"
# sun_path of a Unix socket, with its closing zero.
LONGEST_PATH = 107
PORTS = range(1, 65_536)


def endpoint_of(endpoint: str, replica: int) -> str:
    """Where replica ``replica`` of a server with ``--dp-size`` publishes: a port, or a path, of its own.

    As SGLang's KV events: the first at ``endpoint`` itself, the others at the ports that follow.

    Args:
        endpoint: one that ``check_endpoint`` has passed.
    """
    if replica == 0:
        return endpoint
    if endpoint.startswith("ipc:"):
        return f"{endpoint}_dp{replica}"
    address, _, port = endpoint.rpartition(":")
    return f"{address}:{int(port) + replica}"


def check_endpoints(endpoint: str, public: bool, replicas: int) -> None:
    """``check_endpoint`` of every replica's; raises as it does."""
    for replica in range(replicas):
        check_endpoint(endpoint_of(endpoint, replica), public)


def check_endpoint(endpoint: str, public: bool) -> None:
    """
    Raises:
        ConfigError: it is no address that events are published at, not on this machine alone though
            ``public`` does not allow that, or somebody else has it.
    """
    scheme, _, address = endpoint.partition("://")
    if scheme == "tcp":
        check_tcp(endpoint, *address.rpartition(":")[::2], public)
    elif scheme == "ipc" and address.startswith("/") and address.isprintable():
        check_ipc(endpoint, address)
    else:
        raise ConfigError(f"{FLAG} {shown(endpoint)} is no address for events: {FORMS}")


def check_tcp(endpoint: str, host: str, port: str, public: bool) -> None:
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        address = None
    digits = port.isascii() and port.isdigit() and len(port) <= len(str(PORTS[-1]))
    if address is None or not (digits and int(port) in PORTS):
        raise ConfigError(f"{FLAG} {shown(endpoint)} is no IP address and port: {FORMS}")
    if not (address.is_loopback or public):
        raise ConfigError(
            f"{FLAG} {endpoint} can be reached from other machines, and whoever reaches it reads along: give "
            "127.0.0.1, or add --laprox-events-public"
        )
    with socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET) as trial:
        # libzmq sets this option too: a port that a server has just let go of counts as free.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((str(address), int(port)))
        except OSError as error:
            raise taken(endpoint, error.strerror) from None


def check_ipc(endpoint: str, path: str) -> None:
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise ConfigError(f"{FLAG} {shown(endpoint)}: the path is longer than {LONGEST_PATH} bytes")
    folder = os.path.dirname(path)
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{FLAG} {endpoint}: nothing can be made in {folder}: give a folder that exists")
    try:
        kind = os.stat(path).st_mode
    except FileNotFoundError:
        return
    # ZeroMQ removes whatever lies there, without asking.
    if not stat.S_ISSOCK(kind):
        raise ConfigError(f"{FLAG} {endpoint}: {path} is there and is no socket: give another path")
    with socket.socket(socket.AF_UNIX) as trial:
        try:
            trial.connect(path)
        except OSError:
            # Nobody listens: a server that was killed left it behind.
            return
    raise taken(endpoint, "a server listens there")


def taken(endpoint: str, why: str | None) -> ConfigError:
    return ConfigError(f"{FLAG} {endpoint} cannot be had ({why}): stop who has it, or give another address")
