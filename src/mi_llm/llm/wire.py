"""How a server is spoken to: no redirect is followed, nothing compressed is taken, an answer is bounded in size and time.

What is sent are dialogs, so they go to the address that the parameters name and nowhere else. What comes may be anything.
"""

import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx2
import openai

from mi_llm.problem import Problem

MOST_BYTES = 8 * 2**20  # of one answer; what is longer is cut there
CONNECT_S = 10.0
PLAIN = {"Accept-Encoding": "identity"}  # a compressed answer may become a thousand times as long

Before = Callable[[httpx2.Request], Awaitable[None]]
After = Callable[[httpx2.Response], Awaitable[None]]


def api_key() -> str:
    """The key of the environment; local servers take any."""
    return os.environ.get("OPENAI_API_KEY", "").strip() or "none"


class Compressed(openai.OpenAIError):
    """An answer that is not taken: how long it becomes would be known too late."""


class Bounded(httpx2.AsyncByteStream):  # type: ignore[misc]  # httpx2 is not checked
    """A body that ends at `MOST_BYTES`, and must have come after so many seconds."""

    def __init__(self, body: httpx2.AsyncByteStream, seconds: float) -> None:
        self.body, self.until = body, time.monotonic() + seconds

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body's bytes."""
        left = MOST_BYTES
        async for piece in self.body:
            if time.monotonic() > self.until:
                raise httpx2.ReadTimeout("the answer does not end")
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                return

    async def aclose(self) -> None:
        """Close the connection's body."""
        await self.body.aclose()


async def nothing(_: object) -> None:
    """See a request or response, and do nothing."""


def client(
    url: str,
    retries: int,
    timeout: openai.Timeout,
    *,
    before: Before = nothing,
    after: After = nothing,
    whole_s: float = math.inf,
) -> openai.AsyncOpenAI:
    """A client for one server. `before` sees each request right before it is sent, `after` each response when it begins.

    `whole_s`: the seconds that one answer may take from its first byte to its last.
    """

    async def bounded(response: httpx2.Response) -> None:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise Compressed("the answer is compressed, though that was not asked for")
        response.stream = Bounded(response.stream, whole_s)

    hooks = {"request": [before], "response": [after, bounded]}
    http = openai.DefaultAsyncHttpxClient(follow_redirects=False, timeout=timeout, event_hooks=hooks)
    try:
        return openai.AsyncOpenAI(base_url=url, api_key=api_key(), max_retries=retries, http_client=http, default_headers=PLAIN)
    except httpx2.InvalidURL as error:
        raise Problem(url, str(error), "the address of a model server, such as http://localhost:8000/v1", "correct it") from None


def blocking(url: str, retries: int) -> openai.OpenAI:
    """A client that waits for each answer, which is trusted to end."""
    http = openai.DefaultHttpxClient(follow_redirects=False, timeout=openai.Timeout(600.0, connect=CONNECT_S))
    return openai.OpenAI(base_url=url, api_key=api_key(), max_retries=retries, http_client=http, default_headers=PLAIN)


def unreachable(error: BaseException) -> bool:
    """Whether there is no server at an address."""
    return isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.UnsupportedProtocol)
