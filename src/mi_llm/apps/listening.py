"""How an app listens: at one address of this machine, with a Problem if that is in use."""

import ipaddress
import socket

from mi_llm.problem import Problem


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free port. Raises Problem if the address is unavailable."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise Problem(
            f"{host}:{port}", error.strerror or str(error), "a free address of this machine", "choose another --port"
        ) from None


def loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
