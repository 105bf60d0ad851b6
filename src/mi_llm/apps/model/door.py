"""What every request passes first: the limit on its size, the token, the count of answers, and the handling of unexpected errors.

Nothing that a request or a reply says goes into a log or an error message.
"""

import hmac
import json
import sys
import traceback
from collections.abc import Callable, Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mi_llm.apps.model.protocol import Refusal, invalid
from mi_llm.apps.web import known_host, unbroken

BODY = 256 * 1024  # bytes of a request: several times the longest chat that a model can read
DRAINED = 16 * BODY  # bytes of too large a body that are read and dropped, so that the sender receives the answer
TOKEN = "MI_LLM_TOKEN"  # noqa: S105 — the name of the environment variable
PRIVATE = "/v1/"  # what the bearer token protects: not health, readiness and metrics


class Door:
    """An ASGI application around another at `host`; `on_answer` is called with path and status of each answer."""

    def __init__(self, app: ASGIApp, token: str | None, host: str, on_answer: Callable[[str, int], None]) -> None:
        self.app, self.token, self.host, self.on_answer = app, token, host, on_answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request in, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.on_answer(scope["path"], message["status"])
            await send(message)

        await unbroken(self.admit, failed)(scope, receive, counted)

    async def admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or send its refusal."""
        try:
            self.check_token({name: value.decode("latin1") for name, value in scope["headers"]}, scope["path"])
            await self.app(scope, await whole_body(receive), send)
        except Refusal as refusal:
            await answer(refusal, send)

    def check_token(self, headers: Mapping[bytes, str], path: str) -> None:
        """Refuse a request without the token, or where none is required, one that a foreign page makes under its own name."""
        if self.token is None:
            if not known_host(headers.get(b"host", ""), self.host):
                raise invalid(f"not the name of this server; call it by its address, or set {TOKEN}", status=421)
        elif path.startswith(PRIVATE) and not hmac.compare_digest(
            headers.get(b"authorization", "").encode("latin1"), f"Bearer {self.token}".encode()
        ):
            raise Refusal(401, "send the server's token as `Authorization: Bearer …`", "authentication_error", "invalid_api_key")


async def whole_body(receive: Receive) -> Receive:
    """Read the request's body within its limit; returns what the application receives in its place. Raises Refusal."""
    content, size, unfinished = bytearray(), 0, True
    while unfinished and size <= DRAINED:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        size += len(message.get("body", b""))
        unfinished = message.get("more_body", False)
        if size <= BODY:
            content += message.get("body", b"")
    if size > BODY:
        raise invalid(f"the body is larger than {BODY} bytes", status=413)
    delivered = False

    async def again() -> Message:
        nonlocal delivered
        if delivered:
            return await receive()
        delivered = True
        return {"type": "http.request", "body": bytes(content), "more_body": False}

    return again


def failed(error: Exception) -> ASGIApp:
    """The answer after an unexpected error; the log says no more than the error's type and line."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    print(f"request failed: {type(error).__name__} at {frame.filename}:{frame.lineno}", file=sys.stderr, flush=True)
    refusal = Refusal(500, "internal error; the request may be correct", "server_error")
    return lambda scope, receive, send: answer(refusal, send)


async def answer(refusal: Refusal, send: Send) -> None:
    """Send an error."""
    body = json.dumps(refusal.body.model_dump(), ensure_ascii=False).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refusal.retry_s is not None:
        headers.append((b"retry-after", str(refusal.retry_s).encode()))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
