"""A real HTTP server that speaks OpenAI's protocol (chat completions, files, batches) and misbehaves as real ones do.

It answers a transcription prompt with the dialog in it, as the JSON list that the prompt asks for, and any other with `{}`. With
`--faults 0.3`, that share of its answers is one of `--kinds`, drawn with a seed. Every request is written to the log, a line
each: what was asked (SHA-256 of the body), when it came, and how it was answered; a line is written when the answer has left.

    python tests/support/model_server.py --port 0 --log log.jsonl --faults 0.3 --delay 0.05

prints the port it listens on.
"""

import argparse
import asyncio
import gzip
import hashlib
import json
import random
import re
import time
from pathlib import Path
from typing import Any

FAULTS = ("429", "500", "timeout", "cut", "truncated", "refusal", "roles", "turns")
SENT: dict[str, dict[str, Any]] = {  # whole answers: what stands in place of a good one's text, or of its usage
    "think": {"text": "<think>先想一想 [1]</think>\n好的：\n```JSON\n%s\n```\n希望有帮助。"},
    "deep": {"text": "[" * 20000},
    "infinite": {"text": "[1e999]"},
    "half": {"text": '["\\ud83d"]'},
    "nul": {"text": '["\\u0000"]'},
    "escape": {"text": "\x1b[2J%s"},
    "usage": {"usage": ["a", "list"]},
    "words": {"usage": {"prompt_tokens": "many", "completion_tokens": []}},
    "negative": {"usage": {"prompt_tokens": -(10**9), "completion_tokens": 10**400}},
    "end_turn": {"finish": "end_turn"},
}
ROLES = {"来访者": "client", "咨询师": "counselor"}


def turns_in(prompt: str) -> list[dict[str, str]]:
    """The dialog at the end of a prompt."""
    body = prompt.rsplit("# 原对话", 1)[-1]
    return [{"role": ROLES[label], "content": text} for label, text in re.findall(r"^(来访者|咨询师)：(.+)$", body, re.M)]


def completion(request: dict[str, Any], content: str, **message: str) -> dict[str, Any]:
    """The body of a chat completion."""
    sent = sum(len(entry["content"]) for entry in request["messages"])
    return {
        "id": f"answer-{random.randrange(10**12)}",
        "object": "chat.completion",
        "created": 0,
        "model": f"{request['model']}-2026",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content, **message}}],
        "usage": {"prompt_tokens": sent, "completion_tokens": len(content), "total_tokens": sent + len(content)},
    }


class Server:
    """The server's state: its chance, its log, the files and batches that were uploaded."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.chance = random.Random(options.seed)
        self.log = Path(options.log)
        self.log.touch()
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}

    def note(self, body: bytes, kind: str, came: float) -> None:
        """Write one line of the log."""
        with self.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps({"asked": hashlib.sha256(body).hexdigest(), "came": came, "answered": kind}) + "\n")

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, request after request."""
        try:
            while line := await reader.readline():
                method, path, _ = line.decode().split(" ", 2)
                headers = {}
                while (head := (await reader.readline()).decode().strip()) != "":
                    name, _, value = head.partition(":")
                    headers[name.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if path.endswith("/chat/completions"):
                    await self.chat(body, headers, writer)
                else:
                    status, answer = self.batch_api(method, path, headers, body)
                    await self.send(writer, status, answer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def send(self, writer: asyncio.StreamWriter, status: int, body: Any, more: str = "", cut: bool = False) -> None:
        """Send one response; `cut` breaks the connection in the middle of it."""
        content = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n{more}\r\n"
        writer.write(head.encode() + (content[: len(content) // 2] if cut else content))
        await writer.drain()
        if cut:
            writer.close()
            raise ConnectionError

    async def chat(self, body: bytes, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        """Answer one chat completion, well or not."""
        came, request = time.time(), json.loads(body)
        fault = self.chance.choice(self.options.kinds.split(",")) if self.chance.random() < self.options.faults else "good"
        if self.options.key and headers.get("authorization") != f"Bearer {self.options.key}":
            fault = "401"
        turns = turns_in(request["messages"][-1]["content"])
        told = f"you sent {headers.get('authorization')}"  # a careless server repeats the key
        await asyncio.sleep(self.options.delay)
        text = json.dumps(turns, ensure_ascii=False) if turns else "{}"
        sent = SENT.get(fault, {})
        good = completion(request, str(sent.get("text", "%s")).replace("%s", text))
        good["usage"] = sent.get("usage", good["usage"])
        good["choices"][0]["finish_reason"] = sent.get("finish", "stop")
        if fault == "timeout":
            await asyncio.sleep(self.options.timeout)
        try:
            match fault:
                case "401":
                    await self.send(
                        writer, 401, {"error": {"message": f"Incorrect API key provided: {told}", "code": "invalid_api_key"}}
                    )
                case "429":
                    await self.send(writer, 429, {"error": {"message": told}}, "Retry-After: 0.05\r\n")
                case "500":
                    await self.send(writer, 500, {"error": {"message": told}}, "Retry-After: 0.05\r\n")
                case "cut":
                    await self.send(writer, 200, good, cut=True)
                case "truncated":
                    await self.send(writer, 200, json.dumps(good).encode()[:-40])
                case "body":
                    await self.send(writer, 200, b"[" * 20000)
                case "huge":
                    await self.send(writer, 200, b" " * (12 * 2**20))
                case "bomb":
                    await self.send(writer, 200, gzip.compress(b" " * 2**28), "Content-Encoding: gzip\r\n")
                case "drip":
                    writer.write(b"HTTP/1.1 200 X\r\nContent-Length: 1000\r\n\r\n")
                    for _ in range(1000):
                        writer.write(b" ")
                        await writer.drain()
                        await asyncio.sleep(0.05)
                case "redirect":
                    await self.send(writer, 307, {}, f"Location: {self.options.elsewhere}/v1/chat/completions\r\n")
                case "400":
                    await self.send(writer, 400, {"error": {"message": "temperature does not support 0"}})
                case "refusal":
                    await self.send(writer, 200, completion(request, "", refusal=f"I cannot; {told}"))
                case "roles":
                    wrong = [turn | {"role": "therapist"} for turn in turns]
                    await self.send(writer, 200, completion(request, json.dumps(wrong, ensure_ascii=False)))
                case "turns":
                    await self.send(writer, 200, completion(request, json.dumps(turns[:2], ensure_ascii=False)))
                case _:
                    await self.send(writer, 200, good)
        finally:
            self.note(body, fault, came)

    def batch_api(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        """Files and batches: a batch is answered when it is looked at for the third time, one request in ten badly."""
        route = path.removeprefix("/v1").split("?")[0].strip("/").split("/")
        match method, route:
            case "POST", ["files"]:
                boundary = headers["content-type"].partition("boundary=")[2].encode()
                part = next(part for part in body.split(b"--" + boundary) if b'name="file"' in part)
                name = f"file-{len(self.files)}"
                self.files[name] = part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
                return 200, {"id": name, "object": "file", "bytes": len(body), "created_at": 0, "filename": "x"}
            case "GET", ["files", name, "content"]:
                return 200, self.files[name]
            case "POST", ["batches"]:
                asked = json.loads(body)
                name = f"batch-{len(self.batches)}"
                number = len(self.files[asked["input_file_id"]].splitlines())
                self.batches[name] = {
                    "id": name, "object": "batch", "endpoint": asked["endpoint"], "completion_window": "24h", "created_at": 1,
                    "input_file_id": asked["input_file_id"], "status": "in_progress", "metadata": asked["metadata"],
                    "request_counts": {"total": number, "completed": 0, "failed": 0}, "looks": 0,
                }  # fmt: skip
                self.note(body, "batch", time.time())
                return 200, self.batches[name]
            case "GET", ["batches"]:
                newest_first = list(self.batches.values())[::-1]
                return 200, {"object": "list", "data": newest_first, "has_more": False, "first_id": None, "last_id": None}
            case "GET", ["batches", name]:
                batch = self.batches[name]
                batch["looks"] += 1
                if batch["looks"] == self.options.looks:
                    self.finish(batch)
                return 200, batch
        return 404, {"error": {"message": "no such route"}}

    def finish(self, batch: dict[str, Any]) -> None:
        """Answer the requests of a batch, or not: all of it fails, some are refused, or lines of the answers are odd."""
        if self.options.batch == "failed":
            errors = [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached", "line": None, "param": None}]
            batch |= {"status": "failed", "errors": {"object": "list", "data": errors}}
            return
        lines = []
        refused = {"error": {"message": "temperature does not support 0"}}
        for line in self.files[batch["input_file_id"]].splitlines():
            entry = json.loads(line)
            if self.options.batch == "refused" and "1" in entry["body"]["messages"][-1]["content"]:
                answer_ = {"custom_id": entry["custom_id"], "response": {"status_code": 400, "body": refused}, "error": None}
                self.files["file-errors"] = self.files.get("file-errors", b"") + json.dumps(answer_).encode() + b"\n"
                batch["error_file_id"] = "file-errors"
                self.note(line, "400", time.time())
                continue
            turns = turns_in(entry["body"]["messages"][-1]["content"])
            kept = turns if self.chance.random() >= self.options.faults else turns[:2]
            answer = completion(entry["body"], json.dumps(kept, ensure_ascii=False) if turns else "{}")
            lines.append(
                json.dumps({"custom_id": entry["custom_id"], "response": {"status_code": 200, "body": answer}, "error": None})
            )
            self.note(line, "good" if kept is turns else "turns", time.time())
        if self.options.batch == "odd" and len(lines) > 1:
            lines = ["", "[]", '{"custom_id": ["a"]}', *lines[:-1], lines[-1][:40]]
        name = f"file-{len(self.files)}"
        self.files[name] = "\n".join(lines).encode()
        batch |= {"status": "completed", "output_file_id": name, "completed_at": 2}
        batch["request_counts"]["completed"] = len(lines)


async def main() -> None:
    """Listen until the process ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", required=True)
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--kinds", default=",".join(FAULTS))
    parser.add_argument("--elsewhere", default="http://127.0.0.1:9")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--timeout", type=float, default=2.0)
    parser.add_argument("--batch", default="", help="failed, refused or odd")
    parser.add_argument("--looks", type=int, default=3)
    parser.add_argument("--key", default="")
    parser.add_argument("--seed", type=int, default=1)
    server = Server(parser.parse_args())
    listening = await asyncio.start_server(server.connection, "127.0.0.1", server.options.port, backlog=1000)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
