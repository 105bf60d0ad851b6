"""Connections whose client does not go on, as an attacker holds them."""

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

LINES = (
    "POST /talks HTTP/1.1",
    "Host: 127.0.0.1",
    "Origin: http://127.0.0.1",
    "Content-Type: application/json",
    "Content-Length: 9",
)
HEAD = "\r\n".join((*LINES, "")).encode()  # without its end


@contextmanager
def held(port: int, *beginnings: tuple[int, bytes], addresses: int = 1) -> Iterator[None]:
    """Hold connections to a server on this machine: so many that sent each beginning, from so many addresses; none reads."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(allowed, min(4096, most)), most))
    with ExitStack() as stack:
        for count, sent in beginnings:
            for number in range(count):
                connection = stack.enter_context(socket.socket())
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.bind((f"127.0.0.{1 + number % addresses}", 0))
                connection.connect(("127.0.0.1", port))
                with suppress(OSError):  # closed already, to make room
                    connection.sendall(sent)
        yield
