"""What every app shares: where it listens, its security headers, its pages in the visitor's language, its cookies.

An app with pages is a `Site`. Its package holds `templates/` and `static/`; what all pages share lies in `apps/templates/` and
`apps/static/`. The model server has no pages: it takes only where it listens and what follows an unexpected error.
"""

import ipaddress
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, cast, get_args
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from werkzeug.datastructures import LanguageAccept
from werkzeug.http import parse_accept_header

from mi_llm.codebook.coding import Text
from mi_llm.problem import Problem

REQUEST = 64 * 1024  # bytes

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
    accepted = parse_accept_header(request.headers.get("accept-language"), LanguageAccept)
    preferred = [chosen, *(tag.partition("-")[0].lower() for tag, quality in accepted if quality > 0)]
    return next((cast(Tongue, name) for name in preferred if name in get_args(Tongue)), "en")


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


def warn_unencrypted(content: str, host: str, reached: str) -> None:
    """Print that `content` is not encrypted, where that is so."""
    if not loopback(host) and not reached.startswith("https://"):
        print(f"{content} travel unencrypted over this network; put an HTTPS proxy in front (--address).")


def run(app: FastAPI, listening: socket.socket, **options: Any) -> None:
    """Run an app until it is interrupted."""
    # no access log: a path may hold a link's token or a talk's id
    config = uvicorn.Config(app, access_log=False, log_level="warning", server_header=False, lifespan="off", **options)
    uvicorn.Server(config).run(sockets=[listening])
