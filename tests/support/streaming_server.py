"""A real HTTP server that streams chat completions as a model server does, and misbehaves where it is told to.

It offers the models named, and replies to `说：…` in the client's message with what follows, otherwise with a sentence of the
arm. `#429`, `#500`, `#400`, `#413`, `#long`, `#cut`, `#junk`, `#silent`, `#slow` and `#eos` (it ends without a reason) in the
message make it answer so. Every request is written to the log, a line each when it has ended: what was asked, how many pieces
were sent, and whether the one who asked left early.

    python tests/support/streaming_server.py --log log.jsonl --models tiny,tiny+mi --delay 0.02

prints the port it listens on.
"""

import argparse
import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

REPLIES = {
    "base": "我明白了。晚上吃零食对身体不好，你应该早点睡觉，少买一点零食，坚持一段时间就会习惯的。",
    "tuned": "忙了一整天，晚上那一会儿好像是唯一属于你自己的时间，零食成了给自己的一点安慰。那一会儿对你意味着什么？",
}
SIZES = {"tiny": {"parameters": 2_557_632}}  # our own server tells it, others do not


class Server:
    """The server's state: its options and its log."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.log = Path(options.log)
        self.log.touch()

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, request after request."""
        try:
            while line := await reader.readline():
                method, path, _ = line.decode().split(" ", 2)
                length = 0
                while (head := (await reader.readline()).decode().strip()) != "":
                    if head.lower().startswith("content-length:"):
                        length = int(head.partition(":")[2])
                body = await reader.readexactly(length)
                if method == "GET" and path == "/v1/models":
                    models = [
                        {"id": name, "object": "model", "created": 0, "owned_by": "me", **SIZES.get(name, {})}
                        for name in self.options.models.split(",")
                    ]
                    self.send(writer, 200, {"object": "list", "data": models})
                elif path == "/v1/chat/completions":
                    await self.chat(json.loads(body), reader, writer)
                else:
                    self.send(writer, 404, {"error": {"message": "no such route"}})
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def send(self, writer: asyncio.StreamWriter, status: int, body: Any) -> None:
        """Send one whole response."""
        content = json.dumps(body).encode()
        writer.write(
            f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content
        )

    async def chat(self, request: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Stream one reply, two characters a piece."""
        message = request["messages"][-1]["content"]
        status = re.search(r"#(429|500|400|413)", message)
        if status or "#long" in message:
            self.note(request, 0, "refused")
            code = "context_length_exceeded" if "#long" in message else None
            return self.send(
                writer, int(status[1]) if status else 400, {"error": {"message": f"you said {message}", "code": code}}
            )
        arm = "tuned" if request["model"].endswith("+mi") else "base"
        told = re.search(r"说：(.+)", message, re.DOTALL)
        text = "" if "#silent" in message else told[1] if told else REPLIES[arm]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        sent = 0
        left = asyncio.create_task(reader.read(1))
        try:
            for start in range(0, len(text), 2):
                await asyncio.wait([left], timeout=0.4 if "#slow" in message else self.options.delay)
                if left.done():
                    return self.note(request, sent, "left")
                self.piece(writer, request, {"content": text[start : start + 2]}, None)
                await writer.drain()
                sent += 1
                if sent == 6 and "#cut" in message:
                    self.note(request, sent, "cut")
                    raise ConnectionError
                if sent == 6 and "#junk" in message:
                    self.chunk(writer, b"data: {broken\n\n")
        except ConnectionError:
            if "#cut" not in message:
                self.note(request, sent, "left")
            raise
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        self.note(request, sent, "whole")
        self.piece(writer, request, {}, "" if "#eos" in message else "stop")
        self.chunk(writer, b"data: [DONE]\n\n")
        self.chunk(writer, b"")
        return None

    def piece(self, writer: asyncio.StreamWriter, request: dict[str, Any], delta: dict[str, str], finish: str | None) -> None:
        """Send one event."""
        event = {
            "id": "x", "object": "chat.completion.chunk", "created": 0, "model": request["model"],
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        }  # fmt: skip
        self.chunk(writer, f"data: {json.dumps(event)}\n\n".encode())

    def chunk(self, writer: asyncio.StreamWriter, content: bytes) -> None:
        """Send one chunk of the body; an empty one ends it."""
        writer.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")

    def note(self, request: dict[str, Any], sent: int, ended: str) -> None:
        """Write one line of the log."""
        with self.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps({"request": request, "sent": sent, "ended": ended, "time": time.time()}) + "\n")


async def main() -> None:
    """Listen until the process ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", required=True)
    parser.add_argument("--models", default="tiny,tiny+mi")
    parser.add_argument("--delay", type=float, default=0.01)
    server = Server(parser.parse_args())
    listening = await asyncio.start_server(server.connection, "127.0.0.1", server.options.port, backlog=1000)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
