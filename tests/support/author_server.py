"""A real HTTP server that speaks the chat-completion protocol and answers as `bundle-author`.

It answers the prompts of the miniature with what was written for this bundle (`data/authored/`): a rating, an MI-style
counterpart or a translation; and anything else with 404. The shipped cassettes were recorded from it, through the same code that
records from any other model:

    python tests/support/author_server.py 8808 &
    for stage in rate transcribe translate; do mi-llm $stage --mode record --yes; done
"""

import csv
import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mi_llm import prompts, storage
from mi_llm.construct.rate import ASPECTS
from mi_llm.construct.translate import pieces
from mi_llm.corpora.files import File, from_folder
from mi_llm.corpora.read import READERS
from mi_llm.corpora.reading import Repairs
from mi_llm.dialog import Dialog
from mi_llm.language.language import DEFAULT
from mi_llm.study import load

TRANSCRIBED = ("cpsycound", "psydtcorpus")


def dialogs(data: Path, corpus: str) -> dict[str, Dialog]:
    """A sample corpus's dialogs by id."""
    return {dialog.id: dialog for dialog in READERS[corpus](from_folder(data / "corpora" / corpus), Repairs())}


def asked(name: str, **inputs: Any) -> str:
    """One of the prompts of the miniature, filled in."""
    return prompts.filled_in(prompts.bundled_path(DEFAULT, name), DEFAULT, **inputs)


def authored(path: Path) -> Dialog:
    """A dialog written for this bundle, in CPsyCounD's text format."""
    (dialog,) = READERS["cpsycound"]([File(path.name, path.read_bytes())], Repairs())
    return dialog


def counterparts(data: Path) -> Iterator[tuple[str, str]]:
    """Each transcription prompt about a sample dialog, with its MI-style counterpart."""
    for corpus in TRANSCRIBED:
        for dialog in dialogs(data, corpus).values():
            turns = authored(data / "authored" / corpus / f"{dialog.id}.txt").turns
            answer = [{"role": turn.role, "content": turn.text} for turn in turns]
            yield asked("transcribe", turns=dialog.turns), json.dumps(answer, ensure_ascii=False)


def ratings(data: Path) -> Iterator[tuple[str, str]]:
    """Each rating prompt about a rated dialog, with its points and their sums."""
    for row in csv.DictReader(storage.read_text(data / "authored" / "ratings.csv").splitlines()):
        points = {aspect: {name: float(row[name]) for name in criteria} for aspect, criteria in ASPECTS.items()}
        totals = {aspect: sum(aspect_points.values()) for aspect, aspect_points in points.items()}
        answer: dict[str, object] = {
            aspect: aspect_points | {"Total": totals[aspect]} for aspect, aspect_points in points.items()
        }
        answer["Total Score"] = sum(totals.values())
        yield asked("rate", turns=dialogs(data, row["corpus"])[row["dialog"]].turns), json.dumps(answer)


def translations(data: Path, turns_a_request: int) -> Iterator[tuple[str, str]]:
    """Each translation prompt about a piece of a translated transcript, with its Chinese turns."""
    known = dialogs(data, "annomi")
    for path in sorted((data / "authored" / "annomi").glob("*.txt")):
        texts = [line.partition("：")[2] for line in storage.read_text(path).splitlines()]
        start = 0
        for context, turns in pieces(known[path.stem], turns_a_request):
            answer = json.dumps(texts[start : start + len(turns)], ensure_ascii=False)
            yield asked("translate", context=context, turns=turns), answer
            start += len(turns)


def answers(data: Path) -> dict[str, str]:
    """What the author answers, by prompt."""
    size = load(Path("mini/params.yaml")).translate.turns_a_request
    return dict([*counterparts(data), *ratings(data), *translations(data, size)])


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
