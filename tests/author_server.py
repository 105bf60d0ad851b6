"""A real HTTP server that speaks the chat-completion protocol and answers as `bundle-author`.

It answers a transcription prompt with the MI-style counterpart written for that dialog (`data/authored/`), and anything else
with 404. The shipped cassette was recorded from it, through the same code that records from any other model:

    python tests/author_server.py 8808 &
    mi-llm record data/cassettes/transcribe.jsonl --base-url http://127.0.0.1:8808/v1
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from mi_llm import prompts, storage
from mi_llm.corpora.files import File, from_folder
from mi_llm.corpora.read import READERS
from mi_llm.corpora.reading import Repairs

AUTHORED = ("cpsycound", "psydtcorpus")


def answers(data: Path) -> dict[str, str]:
    """For each transcription prompt about a sample dialog, the authored dialog as the JSON list that the prompt asks for."""
    found = {}
    for corpus in AUTHORED:
        for dialog in READERS[corpus](from_folder(data / "corpora" / corpus), Repairs()):
            text = storage.read_text(data / "authored" / corpus / f"{dialog.id}.txt")
            (counterpart,) = READERS["cpsycound"]([File(f"{dialog.id}.txt", text.encode())], Repairs())
            turns = [{"role": turn.role, "content": turn.text} for turn in counterpart.turns]
            found[prompts.render("transcribe", turns=dialog.turns)] = json.dumps(turns, ensure_ascii=False)
    return found


class Author(BaseHTTPRequestHandler):
    """Answers POST /v1/chat/completions."""

    answers: dict[str, str]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = self.answers.get(body["messages"][-1]["content"])
        if content is None or not self.path.endswith("/chat/completions"):
            self.reply(404, {"error": {"message": "the bundle's author wrote nothing for this request"}})
            return
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        head = {"id": "bundle-author", "object": "chat.completion", "created": 0, "model": "bundle-author"}
        self.reply(200, {**head, "choices": [choice], "usage": usage})

    def reply(self, status: int, body: object) -> None:
        content = json.dumps(body, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def serve(data: Path, port: int) -> ThreadingHTTPServer:
    """A server on the loopback address; port 0 takes any free one."""
    handler = type("Handler", (Author,), {"answers": answers(data)})
    return ThreadingHTTPServer(("127.0.0.1", port), handler)


if __name__ == "__main__":
    serve(Path("data"), int(sys.argv[1])).serve_forever()
