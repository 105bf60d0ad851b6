"""What the apps share, where no running app shows it: whom an address stands for, which proxies and names are known."""

import asyncio
import socket

import pytest
import uvicorn
from fastapi import FastAPI

from mi_llm.apps import web
from mi_llm.problem import Problem


def test_an_ipv6_network_is_one_subscriber() -> None:
    assert web.subscriber("2001:db8:1:2:3::4") == web.subscriber("2001:db8:1:2::ffff") != web.subscriber("2001:db8:1:3::4")
    assert web.subscriber("203.0.113.1") != web.subscriber("203.0.113.2")
    assert web.subscriber("::ffff:203.0.113.1") != web.subscriber("::ffff:203.0.113.2")
    assert web.subscriber("unknown") == "unknown"


def test_proxies_are_addresses_and_networks() -> None:
    assert web.trusted("127.0.0.1, 172.16.0.0/12,") == ["127.0.0.1", "172.16.0.0/12"]
    assert web.trusted("") == []
    for wrong in ("*", "nginx", "172.16.0.1/12"):
        with pytest.raises(Problem, match="--proxies"):
            web.trusted(wrong)


def test_a_server_says_that_it_is_open_when_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    server = web.Server(uvicorn.Config(FastAPI(), lifespan="off", log_level="error"), "open")
    served: dict[str, bool] = {}
    monkeypatch.setattr("builtins.print", lambda text, **_: served.update({text: server.started}))

    async def run(listening: socket.socket) -> None:
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup([listening])
        await server.shutdown([listening])

    with socket.create_server(("127.0.0.1", 0)) as listening:
        asyncio.run(run(listening))
    assert served == {"open": True}


def test_a_server_knows_its_names_and_every_address() -> None:
    for host in ("127.0.0.1:8000", "[::1]:8000", "localhost", socket.gethostname(), "desk.example.org:443"):
        assert web.known_host(host, "desk.example.org")
    for host in ("", "[", "evil.example", "127.0.0.1.evil.example", "desk.example.org.evil.example"):
        assert not web.known_host(host, "desk.example.org", None)
