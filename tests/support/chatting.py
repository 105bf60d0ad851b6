"""A real chat in front of a real model server: both as processes, its routes by HTTP, its page in Chromium."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from repository import ROOT

START = """
import sys
from pathlib import Path
from mi_llm.apps import web
from mi_llm.apps.chat.serve import serve
from mi_llm.study import load
web.ARRIVAL_S = float(sys.argv[5])
serve(load(Path("mini/params.yaml")), sys.argv[1], "127.0.0.1", int(sys.argv[2]), Path(sys.argv[3]), address=sys.argv[4],
      proxies=sys.argv[6], experiment=Path(sys.argv[7]) if sys.argv[7] else None)
"""


@dataclass
class Served:
    """A chat in front of a model server, both real processes."""

    url: str
    port: int
    process: subprocess.Popen[bytes]
    models: subprocess.Popen[bytes]
    log: Path
    votes: Path
    out: Path
    behind: str  # the address of the model server

    def client(self, **headers: str) -> httpx2.Client:
        """A browser's requests, without the browser."""
        return httpx2.Client(base_url=self.url, headers={"Origin": self.url, **headers}, timeout=30, trust_env=False)

    def asked(self) -> list[dict[str, Any]]:
        """What the model server was asked, in the order in which the requests ended."""
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]

    def voted(self) -> list[dict[str, Any]]:
        """The votes that were saved."""
        return [json.loads(line) for line in self.votes.read_text(encoding="utf-8").splitlines()]


def free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def serving(
    folder: Path,
    *,
    models: str = "tiny,tiny+mi,lone",
    delay: float = 0.01,
    token: str = "",
    address: str = "",
    arrival_s: float = 20,
    proxies: str = "",
    experiment: Path | str = "",
) -> Iterator[Served]:
    """A chat and its model server, which offers `models` and waits `delay` seconds before each piece, until the block ends."""
    log, votes, out, port = folder / "asked.jsonl", folder / "votes" / "votes.jsonl", folder / "chat.out", free_port()
    command = [sys.executable, "tests/support/streaming_server.py", "--log", str(log), "--models", models, "--delay", str(delay)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "MI_LLM_CHAT_TOKEN": token, "no_proxy": "*"}
    with out.open("wb") as written:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        start = [sys.executable, "-c", START, url, str(port), str(votes), address, str(arrival_s), proxies, str(experiment)]
        process = subprocess.Popen(start, cwd=ROOT, env=environment, stdout=written, stderr=written)
    try:
        served = Served(f"http://127.0.0.1:{port}", port, process, server, log, votes, out, url)
        await_health(served)
        yield served
    finally:
        for one in (process, server):
            one.terminate()
        for one in (process, server):
            one.wait(10)


def await_health(served: Served) -> None:
    """Wait until the chat answers."""
    for _ in range(300):
        try:
            if httpx2.get(f"{served.url}/health", trust_env=False).status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.1)
        assert served.process.poll() is None, served.out.read_text()
    raise AssertionError("the chat did not start")


def chat_fixture(name: str, **options: Any) -> Callable[[pytest.TempPathFactory], Iterator[Served]]:
    """A fixture for a test module: one chat, open for all of its tests, with the options of `serving`."""

    @pytest.fixture(scope="module")
    def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
        with serving(tmp_path_factory.mktemp(name), **options) as open_chat:
            yield open_chat

    return chat


def begin(client: httpx2.Client, way: str = "tuned", **more: Any) -> str:
    """Begin a talk; its id."""
    answer = client.post("/talks", json={"model": "tiny", "way": way, **more})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def say(client: httpx2.Client, talk: str, text: str, **more: Any) -> list[dict[str, Any]]:
    """Send a message; the events of the reply."""
    with client.stream("POST", f"/talks/{talk}/messages", json={"text": text, **more}) as answer:
        return events(answer)


def events(answer: httpx2.Response) -> list[dict[str, Any]]:
    """The events of a streamed answer."""
    content = answer.read().decode()
    assert answer.status_code == 200, content
    return [json.loads(part[6:]) for part in content.split("\n\n") if part.startswith("data: ")]


def final(found: list[dict[str, Any]], side: int = 0) -> dict[str, Any]:
    """The event that ends one side's reply."""
    return next(event for event in found if event["side"] == side and "finish" in event)


@dataclass
class Browsing:
    """A page in a real Chromium, with what it complained of and where it went."""

    page: Any
    complaints: list[str]
    shots: Path

    def shot(self, name: str) -> None:
        """Take a picture of what is in view."""
        self.page.screenshot(path=self.shots / f"chat-{name}.png")

    def send(self, text: str, *, wait: bool = True) -> None:
        """Say something, and wait for the replies."""
        self.page.fill("#say", text)
        self.page.press("#say", "Enter")
        if wait:
            self.page.wait_for_selector("#rounds > li:last-child .reply:not(.coming)", timeout=20_000)
            self.page.wait_for_selector("#stop", state="hidden", timeout=20_000)

    def menu(self) -> None:
        """Open the menu, where the page is too narrow to show what is in it."""
        if self.page.is_visible("#open-menu"):
            self.page.click("#open-menu")

    def last(self) -> str:
        """What the latest reply says."""
        return str(self.page.inner_text("#rounds > li:last-child .reply:last-child .words"))


@contextmanager
def browsing(
    browser: Any, served: Served, tmp_path: Path, width: int, height: int, locale: str, scheme: str = "light"
) -> Iterator[Browsing]:
    """The chat's page in a window of this size; afterward it must have complained of nothing."""
    shots = Path(os.environ.get("MI_LLM_SCREENSHOTS") or tmp_path)
    shots.mkdir(parents=True, exist_ok=True)
    complaints: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": height}, locale=locale, color_scheme=scheme)
    page = context.new_page()
    page.on("console", lambda told: complaints.append(f"{told.type}: {told.text}") if told.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on("dialog", lambda shown: complaints.append(f"dialog: {shown.message}"))
    page.on("request", lambda asked: None if asked.url.startswith(served.url) else complaints.append(f"went to {asked.url}"))
    page.goto(served.url)
    yield Browsing(page, complaints, shots)
    context.close()
    assert complaints == []
