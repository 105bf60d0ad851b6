"""What every app shares: where it listens, its connections, security headers, pages in the visitor's language, cookies.

An app with pages is a `Site`. Its package holds `templates/` and `static/`; what all pages share lies in `apps/templates/` and
`apps/static/`. The model server has no pages: it takes only where it listens, its connections, and what follows an unexpected
error.
"""

import asyncio
import ipaddress
import resource
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, cast, get_args
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from werkzeug.datastructures import LanguageAccept
from werkzeug.http import parse_accept_header

from mi_llm.codebook.coding import Text
from mi_llm.problem import Problem

REQUEST = 64 * 1024  # bytes
ARRIVAL_S = 20.0  # seconds that a request may take to arrive, and that its answer may lie unread; at most twice as many pass
CONNECTIONS_ADDRESS, CONNECTIONS = 256, 640  # open at once, of one address and in all
FILES = 4096  # open at once, if the machine allows it: connections, those to a model server, and files

Tongue = Literal["zh", "en"]


class Site:
    """An app with pages. `forms` is where its forms may go; `policy` is added to the content-security policy."""

    def __init__(
        self, package: str, words: Mapping[str, Text], *, forms: str, policy: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        self.package, self.words = package, words
        self.headers = {
            "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
            f"connect-src 'self'; base-uri 'none'; form-action {forms}; frame-ancestors 'none'{policy}",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            **(headers or {}),
        }
        self.templates = Environment(
            loader=ChoiceLoader([PackageLoader(package), PackageLoader(__package__)]),
            undefined=StrictUndefined,
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.templates.globals.update(app=package.rpartition(".")[2], said=self.said)
        self.templates.filters["tag"] = {"zh": "zh-CN", "en": "en"}.get

    def application(self, *middleware: Middleware) -> FastAPI:
        """An application with the page's files; every answer has the security headers, also those of `middleware`."""
        # the environment could switch on FastAPI's telemetry, which would carry paths and what people send: off in any case
        telemetry: Any = {"auto_configure": False, "tracing": False, "metrics": False, "logs": False}
        app = FastAPI(
            docs_url=None, redoc_url=None, openapi_url=None, telemetry=telemetry, max_body_size=REQUEST, redirect_slashes=False,
            middleware=[Middleware(guarded, headers=self.headers), *middleware],
        )  # fmt: skip
        app.add_exception_handler(ClientDisconnect, nobody)
        app.mount("/static", StaticFiles(packages=[(self.package, "static"), (__package__, "static")]))
        return app

    def said(self, names: Iterable[str], tongue: Tongue) -> dict[str, str]:
        """Words for a page's script."""
        return {name: getattr(self.words[name], tongue) for name in names}

    def page(self, request: Request, template: str, status: int = 200, **inputs: Any) -> Response:
        """A page in the visitor's language; `?lang=` is remembered."""
        tongue = language(request)

        def say(text: Any) -> Any:
            return getattr(self.words[text] if isinstance(text, str) else text, tongue)

        html = self.templates.get_template(template).render(
            say=say, tongue=tongue, other="en" if tongue == "zh" else "zh", cookies=request.cookies, **inputs
        )
        answer = HTMLResponse(html, status)
        if request.query_params.get("lang") == tongue:
            answer.set_cookie("lang", tongue, max_age=365 * 86400, httponly=True, samesite="lax")
        return answer


async def nobody(request: Request, error: Exception) -> Response:
    """The answer to a browser that left before its request had arrived: it goes nowhere, and no log tells of it."""
    return Response(status_code=400)


def guarded(app: ASGIApp, headers: Mapping[str, str]) -> ASGIApp:
    """Middleware that gives every answer the security headers, and lets a browser keep nothing but the page's files."""

    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = MutableHeaders(scope=message)
                added.update(headers)
                added.setdefault("Cache-Control", "no-cache" if scope["path"].startswith("/static/") else "no-store")
            await send(message)

        await app(scope, receive, sending)

    return answering


def unbroken(app: ASGIApp, failed: Callable[[Exception], ASGIApp]) -> ASGIApp:
    """Middleware for unexpected errors: what `failed` returns answers, if nothing was sent yet."""

    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await app(scope, receive, sending)
        except Exception as error:
            answer = failed(error)
            if not started:
                await answer(scope, receive, send)

    return answering


def language(request: Request) -> Tongue:
    """`?lang=`, else the cookie of an earlier choice, else the first language of Accept-Language that we have, else English.

    Regions and scripts are ignored: `zh-TW` counts as `zh`. `best_match` of werkzeug is not used, since it prefers an
    exact `en;q=0.2` to `zh-CN;q=0.7`.
    """
    chosen = request.query_params.get("lang") or request.cookies.get("lang")
    preferred = [chosen, *(tag.partition("-")[0].lower() for tag in accepted_languages(request))]
    return next((cast(Tongue, name) for name in preferred if name in get_args(Tongue)), "en")


def accepted_languages(request: Request) -> list[str]:
    """The language tags that a browser asks for, `zh-TW` say, in the order of its wishes."""
    accepted = parse_accept_header(request.headers.get("accept-language"), LanguageAccept)
    return [tag for tag, quality in accepted if quality > 0]


def own_origin(request: Request) -> bool:
    """Whether a request was made by a page of this server."""
    return urlsplit(request.headers.get("origin", "")).netloc == request.headers.get("host")


def set_cookie(request: Request, answer: Response, name: str, value: str, max_age: int | None = None) -> None:
    """Set a cookie that no script can read and no other site sends."""
    answer.set_cookie(name, value, max_age, httponly=True, samesite="strict", secure=request.url.scheme == "https")


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


def reached_at(listening: socket.socket, host: str, address: str | None) -> str:
    """Where people open an app: `address` (an https proxy, for instance), else host and port."""
    return address or f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"


def known_host(host: str, *names: str | None) -> bool:
    """Whether a Host header names this server; a foreign name that leads here is refused (DNS rebinding)."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name in ("localhost", socket.gethostname().lower(), *names):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def trusted(proxies: str) -> list[str]:
    """The addresses and networks of the proxies in front, from a list with commas. Raises Problem."""
    names = [name.strip() for name in proxies.split(",") if name.strip()]
    for name in names:
        try:
            ipaddress.ip_network(name)
        except ValueError:
            raise Problem("--proxies", name, "an address, or a network such as 172.16.0.0/12", "correct it") from None
    return names


def warn(content: str, host: str, reached: str, proxies: Sequence[str]) -> None:
    """Print that `content` is not encrypted, or that the proxy is unknown, where that is so."""
    if reached.startswith("https://") and not proxies:
        print("Name the HTTPS proxy with --proxies: else all who come through it count as one address, without secure cookies.")
    if not loopback(host) and not reached.startswith("https://"):
        print(f"{content} travel unencrypted over this network; put an HTTPS proxy in front (--address, --proxies).")


def subscriber(address: str) -> str:
    """Whom an address stands for: itself, or the network of an IPv6 address, since one line has a whole /64."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address) or ip.ipv4_mapped:
        return address
    return str(ipaddress.ip_network((int(ip), 64), strict=False))


class Connection(H11Protocol):
    """uvicorn's HTTP, in which nobody keeps others out by connections alone.

    A connection on which no whole request arrives in time, or whose answer nobody reads, is closed. If an address, or all
    together, have more connections than they may, the one that has waited longest for its client is closed: the new one, if no
    other waits.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, and make room."""
        super().connection_made(transport)
        self.subscriber = subscriber(self.client[0] if self.client else "")
        self.since = self.loop.time()
        self.timer = self.loop.call_later(ARRIVAL_S, self.look)
        everyone = cast("set[Connection]", self.connections)
        for crowd, most in (
            ([other for other in everyone if other.subscriber == self.subscriber], CONNECTIONS_ADDRESS),
            (everyone, CONNECTIONS),
        ):
            if len(crowd) > most:
                min((other for other in crowd if other.waiting), key=lambda other: other.since, default=self).cut()

    @property
    def waiting(self) -> bool:
        """Whether it is the client's turn: to send a whole request, or to read."""
        return self.cycle is None or self.cycle.more_body or self.cycle.response_complete or self.flow.write_paused

    def look(self) -> None:
        """Close the connection if it has waited too long, else look again later."""
        if self.waiting and self.loop.time() - self.since >= ARRIVAL_S:
            self.cut()
        else:
            self.timer = self.loop.call_later(ARRIVAL_S, self.look)

    def cut(self) -> None:
        """Close the connection at once; it no longer counts."""
        self.connections.discard(self)
        self.transport.abort()

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self.since = self.loop.time()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self.since = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the waiting."""
        super().connection_lost(exc)
        self.timer.cancel()


def configured(app: ASGIApp, proxies: Sequence[str] = (), **options: Any) -> uvicorn.Config:
    """How an app is served: only `proxies` may say for whom they ask. Nothing that anybody sends makes a log longer."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= allowed < FILES:
        allowed = FILES if most < 0 else min(FILES, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
    accepted = 128 if 0 <= allowed < FILES else 1024  # at once, before their limits are looked at
    return uvicorn.Config(
        app, http=Connection, ws="none", backlog=accepted, proxy_headers=bool(proxies), forwarded_allow_ips=list(proxies),
        log_level="error", access_log=False, server_header=False, **options,
    )  # fmt: skip


class Server(uvicorn.Server):
    """uvicorn's server, which says that it is open only when it is, and when its answer to Ctrl+C is in place."""

    def __init__(self, config: uvicorn.Config, opened: str) -> None:
        super().__init__(config)
        self.opened = opened

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve, and say so."""
        await super().startup(sockets)
        print(self.opened, flush=True)


def run(app: FastAPI, listening: socket.socket, proxies: Sequence[str], opened: str, **options: Any) -> None:
    """Run an app until it is interrupted; the terminal shows `opened` once it serves."""
    Server(configured(app, proxies, lifespan="off", **options), opened).run(sockets=[listening])
