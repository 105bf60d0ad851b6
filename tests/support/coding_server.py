"""A real HTTP server that codes as the language model of the tests."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mi_llm.codebook.coding import Global


class Coder(BaseHTTPRequestHandler):
    """A real HTTP server that codes: an utterance a clause, a question by its mark, else a reflection, 3 for every global.

    The first answer to each request of `spoilt` kinds is unusable.
    """

    spoilt: set[str]
    asked: Counter[str]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = body["response_format"]["json_schema"]["name"]
        prompt = body["messages"][-1]["content"]
        self.asked[prompt] += 1
        answer = "对不起" if kind in self.spoilt and self.asked[prompt] == 1 else json.dumps(self.answer(kind, prompt))
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": answer}}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        head = {"id": "x", "object": "chat.completion", "created": 0, "model": "coder-2026"}
        content = json.dumps({**head, "choices": [choice], "usage": usage}, ensure_ascii=False).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def answer(self, kind: str, prompt: str) -> Any:
        if kind == "globals":
            return dict.fromkeys(Global, 3)
        if kind == "client":
            turns = prompt.partition("<transcript>\n")[2].splitlines()[:-1]
            volleys = [line.split(" ", 2) for line in turns]
            return {"codes": [{"volley": int(n), "code": "change"} for n, role, _ in volleys if role == "client"]}
        tag = "clauses" if kind == "utterances" else "utterances"
        texts = [json.loads(line.split(" ", 1)[1]) for line in prompt.partition(f"<{tag}>\n")[2].splitlines()[:-1]]
        if kind == "utterances":
            return {"starts": list(range(1, len(texts) + 1))}
        codes = ["none" if "嗯" in text or "你好" in text else "Q" if "？" in text or "?" in text else "SR" for text in texts]
        return {"codes": [{"utterance": number, "code": code} for number, code in enumerate(codes, 1)]}

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def coding() -> Iterator[type[Coder]]:
    """A running coder; its class knows its address (`url`), what it spoils and what it was asked."""
    kind = type("Running", (Coder,), {"spoilt": set(), "asked": Counter()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    kind.url = f"http://127.0.0.1:{server.server_port}/v1"  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield kind
    finally:
        server.shutdown()
        server.server_close()
