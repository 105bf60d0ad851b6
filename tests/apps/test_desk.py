"""The coding desk through its doors: a real server over real files, real clients, and a real Chromium."""

import csv
import io
import itertools
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import half_open
import httpx2
import psutil
import pytest
from edits import edit
from playwright.sync_api import expect
from repository import PROGRAMS, ROOT

from mi_llm.apps.desk import agreement, desk_texts, overview, saving, serve
from mi_llm.apps.desk.store import Desk, Held, Part, Store
from mi_llm.codebook import packets
from mi_llm.codebook.coding import Behavior, Global, Rating, volley
from mi_llm.codebook.tables import ANSWERS
from mi_llm.miti.reliability import cohen
from mi_llm.problem import Problem

DESK = ROOT / "src" / "mi_llm" / "apps" / "desk"
TALK = [
    ("client", "我每天下班都要喝两瓶啤酒，老婆一直说我，我自己也知道该少喝点。"),
    ("counselor", "您自己也觉得喝得有点多了。少喝一点，会给您带来什么？"),
    ("client", "睡得好些吧，早上起来头不疼。可是一累就想喝。"),
    ("counselor", "一边盼着早上清醒，一边累的时候又离不开那口酒，这两头都在拉着您。"),
    ("client", "对，就是这样。上个月我试过一周没喝。"),
    ("counselor", "一周没喝，这很不容易，您是真的下了决心。"),
    ("client", "后来同事聚餐，又喝上了。"),
    ("counselor", "那您明天就应该把家里的酒都倒掉，再也别去聚餐。"),
    ("client", "这个……恐怕做不到。"),
    ("counselor", "好的。"),
]
SHARED, FIRST, SECOND, EXERCISE = "k7f3q2", "m2x9d4", "p5c8z1", "t4h6w8"
GOLD = {2: ["SR", "Q"], 4: ["CR"], 6: ["AF"], 8: ["PERS"], 10: []}


def packet(name: str) -> dict[str, Any]:
    return {"packet": name, "turns": [{"role": role, "text": text} for role, text in TALK]}


def lay(folder: Path, raters: dict[str, list[str]]) -> Path:
    """A folder of packets as the stage `blind` writes it, the key above it."""
    folder.mkdir(parents=True)
    for name in {name for names in raters.values() for name in names}:
        (folder / f"{name}.json").write_text(json.dumps(packet(name), ensure_ascii=False))
    (folder / "raters.json").write_text(json.dumps(raters))
    (folder.parent / "key.csv").write_text("packet,source,arm,dialog,profile,topic\nk7f3q2,glm-4-9b,tuned,d1,p1,alcohol\n")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return lay(tmp_path / "blind" / "packets", {"rater-1": [SHARED, FIRST], "rater-2": [SECOND, SHARED]})


@pytest.fixture
def training(tmp_path: Path) -> Path:
    return lay_training(tmp_path / "training")


def lay_training(place: Path) -> Path:
    """A folder with one exercise and its gold codes."""
    place.mkdir()
    (place / f"{EXERCISE}.json").write_text(json.dumps(packet(EXERCISE), ensure_ascii=False))
    rows = [("gold", EXERCISE, number, code) for number, codes in GOLD.items() for code in codes or [""]]
    (place / "codes.csv").write_text("rater,packet,volley,code\n" + "".join(f"{','.join(map(str, row))}\n" for row in rows))
    ratings = "".join(f"gold,{EXERCISE},{code},{rating}\n" for code, rating in zip(Global, (4, 3, 4, 2), strict=True))
    (place / "globals.csv").write_text(f"rater,packet,code,rating\n{ratings}")
    return place


# ---- a desk that runs ----


@dataclass
class Running:
    """A desk in its own process, and the links that it printed."""

    process: subprocess.Popen[str]
    url: str
    links: dict[str, str]
    said: list[str] = field(default_factory=list)

    def client(self, person: str | None = None, **options: Any) -> httpx2.Client:
        """A browser's half: cookies, and the address of the page on writes."""
        client = httpx2.Client(base_url=self.url, headers={"Origin": self.url}, follow_redirects=True, timeout=30, **options)
        if person:
            assert client.get(self.links[person]).status_code == 200
        return client


@contextmanager
def running(folder: Path, data: Path, training: Path | None = None, **options: Any) -> Iterator[Running]:
    code = f"""from pathlib import PosixPath
from mi_llm.apps.desk.serve import serve
serve({folder!r}, {data!r}, "127.0.0.1", 0, training={training!r}, **{options!r})"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    try:
        desk = Running(process, "", {})
        assert process.stdout
        for line in process.stdout:
            desk.said.append(line)
            if found := re.match(r"(\S+) +(http\S+/in/\S+)", line):
                desk.links[found[1]] = found[2]
            if found := re.match(r"The desk is open: (\S+)", line):
                desk.url = found[1]
                break
        assert desk.url, "".join(desk.said)
        httpx2.get(desk.url, timeout=30)  # a signal before the server listens to signals may be lost
        yield desk
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=20)
        desk.said.append(rest)


@pytest.fixture
def desk(folder: Path, training: Path, tmp_path: Path) -> Iterator[Running]:
    with running(folder, tmp_path / "data", training) as running_desk:
        yield running_desk


def change(item: str, value: Any, base: str = "", **more: Any) -> dict[str, Any]:
    return {"id": uuid.uuid4().hex, "item": item, "value": value, "base": base, **more}


def send(client: httpx2.Client, rater: str, path: str, *changes: dict[str, Any]) -> list[dict[str, Any]]:
    answer = client.post(f"{path}/changes", json={"rater": rater, "changes": changes})
    assert answer.status_code == 200, answer.text
    return list(answer.json())


CODED = {2: ["SR", "CR", "Q"], 4: ["CR"], 6: ["AF"], 8: ["PERS", "PwP"], 10: []}
RATED = {"CCT": 4, "SST": 3, "EMP": 5, "PAR": 1}
GUESS = "real"


def code_all(client: httpx2.Client, rater: str, path: str, coded: dict[int, list[str]] = CODED) -> None:
    changes = [change(f"volley-{number}", codes) for number, codes in coded.items()]
    changes += [change(f"global-{code}", rating) for code, rating in RATED.items()]
    changes += [change("guess", GUESS)] if path.startswith("/packets/") else []
    assert all(outcome["status"] == "saved" for outcome in send(client, rater, path, *changes, change("done", True)))


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def typed(rater: str, name: str, coded: dict[int, list[str]]) -> list[dict[str, str]]:
    """The rows of codes.csv for what was typed, in its order."""
    return [
        {"rater": rater, "packet": name, "volley": str(number), "code": code}
        for number, codes in sorted(coded.items())
        for code in sorted(codes) or [""]
    ]


# ---- who may come in ----


def test_a_link_is_random_printed_once_and_kept_as_a_hash(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running(folder, data) as desk:
        assert set(desk.links) == {"rater-1", "rater-2", "coordinator"}
        tokens = [link.rpartition("/")[2] for link in desk.links.values()]
        assert all(len(token) >= 22 for token in tokens)  # 22 characters of base64 are 132 bits
        answer = httpx2.get(desk.links["rater-1"])
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"].lower()
        assert {"httponly", "samesite=strict"} <= set(cookie.split("; "))
        tokens.append(re.search(r"session=([^;]+)", answer.headers["set-cookie"])[1])  # type: ignore[index]
        kept = b"".join(path.read_bytes() for path in data.iterdir())
        assert not [token for token in [*tokens, "no such token"] if token.encode() in kept]
        assert (data / "desk.sqlite").stat().st_mode & 0o077 == 0
    with running(folder, data) as again:
        assert not again.links
        assert httpx2.get(f"{again.url}/in/{tokens[0]}").status_code == 303


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--packets", "{folder}", "--port", "88080"], "less than or equal to 65535"),
        (["--packets", "{folder}/raters.json"], "raters.json: a file\n  expected: a folder of packets"),
        (["--packets", "{folder}/nowhere"], "nowhere: no such folder\n  expected: a folder of packets"),
        (["--packets", "{folder}", "--training", "{folder}/raters.json"], "raters.json: a file\n  expected: a folder of packets"),
    ],
)
def test_a_desk_that_cannot_open_says_why(folder: Path, tmp_path: Path, options: list[str], told: str) -> None:
    command = [str(PROGRAMS / "mi-llm"), "desk", "--data", str(tmp_path / "data")]
    words = [option.format(folder=folder) for option in options]
    environment = {**os.environ, "COLUMNS": "200", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_renewed_link_ends_the_old_one_and_its_sessions(
    desk: Running, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = desk.client("rater-1")
    serve.links(folder, tmp_path / "data", desk.url, renew="rater-1")
    link = capsys.readouterr().out.split()[-1]
    assert client.get("/").status_code == 404
    assert httpx2.get(desk.links["rater-1"]).status_code == 404
    assert httpx2.get(link).status_code == 303
    assert desk.client("rater-2").get("/").status_code == 200
    with pytest.raises(Problem, match="nobody at this desk"):
        serve.links(folder, tmp_path / "data", desk.url, renew="rater-9")


def test_what_is_not_yours_and_what_is_not_there_look_the_same(desk: Running) -> None:
    rater, nobody, coordinator = desk.client("rater-1"), desk.client(), desk.client("coordinator")
    answers = [
        rater.get(f"/packets/{SECOND}"),
        rater.get("/packets/zzzzzz"),
        rater.get("/packets/raters"),
        rater.get("/packets/..%2f..%2fkey"),
        rater.get(f"/packets/{SECOND}/state"),
        rater.get(f"/study/{FIRST}"),
        rater.get("/export/codes.csv"),
        rater.get("/in/" + "A" * 32),
        rater.get("/static/../store.py"),
        rater.get("/static/%2e%2e/store.py"),
        rater.get("/openapi.json"),
        rater.post(f"/packets/{SECOND}/changes", json={"rater": "rater-1", "changes": []}),
        rater.post(f"/packets/{SECOND}/changes", content=b"{"),
        nobody.get("/"),
        nobody.get(f"/packets/{FIRST}"),
        nobody.get("/in/" + "A" * 32),
        nobody.post(f"/packets/{FIRST}/changes", json={"rater": "rater-1", "changes": []}),
        coordinator.get(f"/packets/{FIRST}"),
        coordinator.get("/export/key.csv"),
        coordinator.post(f"/packets/{FIRST}/changes", json={"rater": "rater-1", "changes": []}),
    ]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.content for answer in answers}) == 1
    assert len({frozenset(set(answer.headers.items()) - {("date", answer.headers["date"])}) for answer in answers}) == 1


def test_writes_come_from_the_desks_own_pages_and_are_small(desk: Running) -> None:
    client, path = desk.client("rater-1"), f"/packets/{FIRST}"
    body = {"rater": "rater-1", "changes": [change("note", "好")]}
    for origin in ("http://elsewhere.example", "null", ""):
        assert client.post(f"{path}/changes", json=body, headers={"Origin": origin}).status_code == 403
    without = httpx2.Client(base_url=desk.url, cookies=client.cookies)
    assert without.post(f"{path}/changes", json=body).status_code == 403

    assert client.post(f"{path}/changes", content=b" " * 65_537).status_code == 413
    pieces = (b" " * 10_000 for _ in range(7))  # in chunks, with no length said beforehand
    assert client.post(f"{path}/changes", content=pieces).status_code == 413
    assert client.get("/", headers={"Accept-Language": "x;q=,;;q=a,zh;q=nan"}).status_code == 200

    long = {"rater": "rater-1", "changes": [change("note", "长" * 4_001)]}
    assert client.post(f"{path}/changes", json=long).status_code == 413
    assert send(client, "rater-1", path, change("note", "长" * 4_000))[0]["status"] == "saved"

    bad = [
        b"{", b"[]", b'{"rater":"rater-1"}', b'{"rater":"rater-1","changes":[{}]}', b"\xff",
        json.dumps({"rater": "rater-1", "changes": [change("volley-2", ["QQ"])]}).encode(),
        json.dumps({"rater": "rater-1", "changes": [change("../../x", [])]}).encode(),
        json.dumps({"rater": "rater-1", "changes": [change("note", "\ud800")]}).encode(),
        json.dumps({"rater": "rater-1", "changes": [{**change("note", ""), "arm": "tuned"}]}).encode(),
    ]  # fmt: skip
    assert [client.post(f"{path}/changes", content=content).status_code for content in bad] == [422] * len(bad)
    # a page that was open when somebody else signed in must not write in their name
    assert client.post(f"{path}/changes", json={"rater": "rater-2", "changes": []}).status_code == 409


def test_every_answer_keeps_the_page_to_itself(desk: Running) -> None:
    client = desk.client("rater-1")
    for path in ("/", f"/packets/{FIRST}", f"/packets/{FIRST}/state", "/static/desk.js", "/nothing"):
        headers = client.get(path).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers
    for path in ("/", f"/packets/{FIRST}"):
        html = client.get(path).text
        assert not re.search(r"<script(?![^>]*(src=|application/json))|<style|\sstyle=|\son\w+=|https?://", html)
        assert client.get(path).headers["cache-control"] == "no-store"


def test_pages_come_in_the_visitors_language(desk: Running) -> None:
    client = desk.client("rater-1")
    assert 'lang="en"' in client.get("/", headers={"Accept-Language": "en-GB,en;q=0.9,zh;q=0.8"}).text
    assert "你的文本" in client.get("/", headers={"Accept-Language": "zh-TW,zh;q=0.9,en;q=0.8"}).text
    assert "你的文本" in client.get("/", headers={"Accept-Language": "fr, en;q=0.2, zh-CN;q=0.7"}).text
    client.get("/?lang=zh")
    assert "提问" in client.get(f"/packets/{FIRST}", headers={"Accept-Language": "en"}).text


def test_no_page_tells_the_arm(desk: Running) -> None:
    for person in ("rater-1", "coordinator"):
        client = desk.client(person)
        for path in ("/", f"/packets/{SHARED}", f"/packets/{SHARED}/state"):
            text = re.sub('<fieldset class="global guess">.*?</fieldset>', "", client.get(path).text, flags=re.DOTALL)
            assert not re.search("glm|tuned|base model|llama|annomi|alcohol", text, re.IGNORECASE)


def test_a_guess_is_asked_of_every_packet_alike_and_comes_last(desk: Running) -> None:
    client, path = desk.client("rater-1"), f"/packets/{FIRST}"
    offered = [re.findall('name="guess" value="([a-z]+)"', client.get(f"/packets/{name}").text) for name in (SHARED, FIRST)]
    assert offered == [list(ANSWERS)] * 2
    assert "guess" not in re.findall('name="([a-z]+)"', client.get(f"/training/{EXERCISE}").text)
    assert send(client, "rater-1", path, change("guess", "tuned"))[0]["reason"] == "incomplete"
    everything = [change(f"volley-{number}", codes) for number, codes in CODED.items()]
    everything += [change(f"global-{code}", rating) for code, rating in RATED.items()]
    *_, unguessed = send(client, "rater-1", path, *everything, change("done", True))
    assert unguessed["reason"] == "incomplete"
    assert send(client, "rater-1", path, change("guess", "yes"))[0]["reason"] == "unknown"
    saved = send(client, "rater-1", path, change("guess", "tuned"), change("done", True))
    assert [outcome["status"] for outcome in saved] == ["saved", "saved"]


def test_the_key_is_not_opened_and_no_text_is_logged(folder: Path, tmp_path: Path) -> None:
    (folder.parent / "key.csv").chmod(0)
    (folder / "key.csv").mkdir()  # whoever opened it would fail
    with running(folder, tmp_path / "data") as desk:
        client = desk.client("rater-1")
        send(client, "rater-1", f"/packets/{FIRST}", change("note", "a secret remark"))
        client.post(f"/packets/{FIRST}/changes", content=b'{"rater": "a secret remark", ')
        client.get("/in/a-secret-token")
    said = "".join(desk.said)
    assert desk.links["rater-1"] in said
    assert not re.search("secret|Traceback", said)
    assert said.count("/in/") == 3  # the printed links, and no request


# ---- what is saved ----


def test_a_change_is_written_once_however_often_it_is_sent(desk: Running, tmp_path: Path) -> None:
    client, path = desk.client("rater-1"), f"/packets/{FIRST}"
    first = change("volley-2", ["Q"])
    second = change("volley-2", ["Q", "SR"], base=first["id"])
    assert [outcome["status"] for outcome in send(client, "rater-1", path, first, second)] == ["saved", "saved"]
    again = send(client, "rater-1", path, first)[0]
    assert (again["status"], again["value"], again["version"]) == ("saved", ["Q", "SR"], second["id"])
    with sqlite3.connect(tmp_path / "data" / "desk.sqlite") as database:
        assert database.execute("SELECT count(*) FROM event").fetchone() == (2,)


def test_a_write_on_an_old_version_is_refused_and_shows_both(desk: Running) -> None:
    client, path = desk.client("rater-1"), f"/packets/{FIRST}"
    seen = change("volley-2", ["Q"])
    send(client, "rater-1", path, seen)
    one, other = change("volley-2", ["SR"], base=seen["id"]), change("volley-2", ["CR"], base=seen["id"])
    assert send(client, "rater-1", path, one)[0]["status"] == "saved"
    refused = send(client, "rater-1", path, other)[0]
    assert (refused["status"], refused["value"], refused["version"]) == ("conflict", ["SR"], one["id"])
    # who comes to the same value agrees, and other items do not mind
    same, elsewhere = change("volley-2", ["SR"], base=seen["id"]), change("volley-4", ["AF"])
    assert [outcome["status"] for outcome in send(client, "rater-1", path, same, elsewhere)] == ["saved", "saved"]
    assert client.get(f"{path}/state").json()["items"]["volley-2"] == {"value": ["SR"], "version": same["id"]}


def test_undo_is_an_event_and_events_are_kept(desk: Running, tmp_path: Path) -> None:
    client, path = desk.client("rater-1"), f"/packets/{FIRST}"
    first = change("volley-2", ["Q"])
    second = change("global-EMP", 4)
    send(client, "rater-1", path, first, second)
    assert [entry["id"] for entry in client.get(f"{path}/state").json()["history"]] == [first["id"], second["id"]]
    undo = change("global-EMP", None, base=second["id"], undoes=second["id"])
    send(client, "rater-1", path, undo)
    state = client.get(f"{path}/state").json()
    assert state["items"]["global-EMP"]["value"] is None
    assert [entry["id"] for entry in state["history"]] == [first["id"]]
    with sqlite3.connect(tmp_path / "data" / "desk.sqlite") as database:
        events = database.execute("SELECT item, before, value, undoes FROM event ORDER BY number").fetchall()
        assert events == [
            ("volley-2", "null", '["Q"]', None), ("global-EMP", "null", "4", None), ("global-EMP", "4", "null", second["id"]),
        ]  # fmt: skip
        for statement in ("DELETE FROM event", "UPDATE event SET value = '5'"):
            with pytest.raises(sqlite3.IntegrityError, match="events are kept"):
                database.execute(statement)
        # what holds follows from the events alone
        last = dict(database.execute("SELECT item, value FROM event ORDER BY number").fetchall())
        assert last == dict(database.execute("SELECT item, value FROM state"))


def test_what_a_packet_does_not_have_is_refused(desk: Running) -> None:
    wrong: list[tuple[str, Any]] = [
        ("volley-1", ["Q"]), ("volley-3", ["Q"]), ("volley-99", ["Q"]), ("volley-02", ["Q"]), ("volley-2", ["Q", "Q"]),
        ("volley-2", 3), ("volley-2", True), ("global-EMP", 0), ("global-EMP", 6), ("global-EMP", True), ("global-XXX", 3),
        ("note", 3), ("done", 1), ("shown-2", True),
    ]  # fmt: skip
    outcomes = send(desk.client("rater-1"), "rater-1", f"/packets/{FIRST}", *[change(item, value) for item, value in wrong])
    assert [(one["item"], one["status"], one["reason"]) for one in outcomes] == [
        (item, "refused", "unknown") for item, _ in wrong
    ]


def test_a_transcript_is_done_when_all_is_coded_and_closed_when_all_are_done(desk: Running) -> None:
    one, other, path = desk.client("rater-1"), desk.client("rater-2"), f"/packets/{SHARED}"
    assert send(one, "rater-1", path, change("done", True))[0]["reason"] == "incomplete"
    code_all(one, "rater-1", path)
    state = one.get(f"{path}/state").json()["items"]
    again = change("volley-2", [], base=state["volley-2"]["version"])
    assert send(one, "rater-1", path, again)[0]["reason"] == "done"
    reopened = change("done", None, base=state["done"]["version"])
    assert send(one, "rater-1", path, reopened, again, change("done", True, base=reopened["id"]))[1]["status"] == "saved"
    code_all(other, "rater-2", path)
    version = one.get(f"{path}/state").json()["items"]["done"]["version"]
    assert send(one, "rater-1", path, change("done", None, base=version))[0]["reason"] == "closed"


def test_no_code_is_seen_before_all_who_share_a_packet_are_done(desk: Running, folder: Path, tmp_path: Path) -> None:
    one, other, coordinator = desk.client("rater-1"), desk.client("rater-2"), desk.client("coordinator")
    send(one, "rater-1", f"/packets/{SHARED}", change("note", "<script>alert(1)</script>"))
    code_all(one, "rater-1", f"/packets/{SHARED}")
    before = coordinator.get("/").text
    assert "No transcript has been finished by two raters" in before
    assert "alert(1)" not in before
    assert coordinator.get("/export/codes.csv").text == "rater,packet,volley,code\n"
    assert coordinator.get("/export/globals.csv").text == "rater,packet,code,rating\n"

    second = {**CODED, 2: ["Q"], 10: ["GI"]}
    code_all(other, "rater-2", f"/packets/{SHARED}", second)
    code_all(other, "rater-2", f"/packets/{SECOND}", GOLD)
    expected = typed("rater-1", SHARED, CODED) + typed("rater-2", SHARED, second) + typed("rater-2", SECOND, GOLD)
    assert rows(coordinator.get("/export/codes.csv").text) == expected
    ratings = rows(coordinator.get("/export/globals.csv").text)
    assert [tuple(row.values()) for row in ratings[:4]] == [("rater-1", SHARED, code, str(RATED[code])) for code in sorted(RATED)]
    assert len(ratings) == 12
    guesses = [("rater-1", SHARED, GUESS), ("rater-2", SHARED, GUESS), ("rater-2", SECOND, GUESS)]
    assert [tuple(row.values()) for row in rows(coordinator.get("/export/guesses.csv").text)] == guesses
    after = coordinator.get("/").text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in after
    assert "<script>alert" not in after
    assert "rater-1 – rater-2" in after

    serve.export(folder, tmp_path / "data", tmp_path / "out")
    for name in ("codes.csv", "globals.csv", "guesses.csv"):
        assert (tmp_path / "out" / name).read_text() == coordinator.get(f"/export/{name}").text


def test_reliability_is_of_what_counts(folder: Path) -> None:
    desk = packets.read(folder)

    def state(coded: dict[int, list[str]]) -> Any:
        items = {f"volley-{number}": Held(codes, "x") for number, codes in coded.items()}
        return {**items, **{f"global-{code}": Held(rating, "x") for code, rating in RATED.items()}, "done": Held(True, "x")}

    states = {Desk("rater-1", "packets", SHARED): state(CODED), Desk("rater-2", "packets", SHARED): state(GOLD)}
    (pair,) = agreement.reliability(desk, states)
    assert (pair.raters, pair.packets, pair.volleys) == (("rater-1", "rater-2"), 1, 5)
    found = {row.behavior: row for row in pair.behaviors}
    # rater-1 typed SR and CR in volley 2: complex counts; PERS and PwP in volley 8: persuading with permission counts
    assert found[Behavior.COMPLEX].seen == (2, 1)
    assert found[Behavior.COMPLEX].kappa == pytest.approx(cohen([1, 1, 0, 0, 0], [0, 1, 0, 0, 0]))
    assert found[Behavior.SIMPLE].seen == (0, 1)
    assert found[Behavior.PERSUADE_WITH].seen == (1, 0)
    assert found[Behavior.AFFIRM].kappa == 1
    assert Behavior.CONFRONT not in found
    assert found[None].share == pytest.approx(46 / 50)
    assert all(row.equal == 1 for row in pair.globals)


def test_the_browser_counts_by_the_codebooks_rule() -> None:
    covers = agreement.covers()
    for size in range(len(Behavior) + 1):
        for typed_codes in itertools.combinations(Behavior, size):
            covered = {other for code in typed_codes for other in covers.get(code, [])}
            assert set(typed_codes) - covered == volley(typed_codes)


def test_the_training_shows_the_gold_after_a_volley_and_not_before(desk: Running) -> None:
    client, path = desk.client("rater-1"), f"/training/{EXERCISE}"
    assert client.get(f"{path}/state").json()["gold"] == {}
    assert send(client, "rater-1", path, change("shown-2", True))[0]["reason"] == "incomplete"
    coded = change("volley-2", ["Q"])
    assert send(client, "rater-1", path, coded)[0]["gold"] is None
    assert send(client, "rater-1", path, change("shown-2", True))[0]["gold"] == ["Q", "SR"]
    assert send(client, "rater-1", path, change("volley-2", ["Q", "SR"], base=coded["id"]))[0]["reason"] == "shown"
    assert client.get(f"{path}/state").json()["gold"] == {"2": ["Q", "SR"]}
    rest = [[change(f"volley-{number}", GOLD[number]), change(f"shown-{number}", True)] for number in (4, 6, 8, 10)]
    send(client, "rater-1", path, *itertools.chain(*rest), *[change(f"global-{code}", rating) for code, rating in RATED.items()])
    assert "Your agreement" not in client.get(path).text
    assert send(client, "rater-1", path, change("done", True))[0]["status"] == "saved"
    html = re.sub(r">\s+<", "><", client.get(path).text)
    assert "Your agreement with the gold" in html
    # pooled over 50 decisions: one of five behaviors seen by the gold is missed
    kappa = cohen([True] * 5 + [False] * 45, [True] * 4 + [False] * 46)
    assert f'All behaviors</th><td class="number">{kappa:.2f}</td>' in html
    assert '<td class="number">4</td><td class="number">5</td><td class="number">+1</td>' in html  # empathy
    assert send(client, "rater-1", path, change("done", None))[0]["reason"] == "closed"
    assert rows(desk.client("coordinator").get("/export/codes.csv").text) == []


# ---- what outlives what ----


def test_connections_that_ask_for_nothing_keep_nobody_out(folder: Path, tmp_path: Path) -> None:
    with running(folder, tmp_path / "data") as desk:
        with half_open.held(int(desk.url.rpartition(":")[2]), (600, b""), (1100, half_open.HEAD)):
            assert desk.client("rater-1").get("/").status_code == 200
            assert psutil.Process(desk.process.pid).num_fds() < 1000
        desk.said.clear()
    assert desk.said[-1] == "\nThe desk is closed.\n"


def test_the_desk_says_that_it_is_open(desk: Running) -> None:
    answer = httpx2.get(f"{desk.url}/health")
    assert (answer.status_code, answer.text) == (200, "open\n")


@pytest.mark.slow
def test_fifty_raters_saving_at_once_lose_nothing(tmp_path: Path) -> None:
    each, people = 20, [f"rater-{number}" for number in range(1, 51)]
    folder = lay(tmp_path / "blind" / "packets", {rater: [SHARED] for rater in people})
    path = f"/packets/{SHARED}"
    start = threading.Barrier(len(people))

    def saving_all(rater: str) -> dict[str, Any]:
        client, last, base = running_desk.client(rater), None, ""
        start.wait(60)
        for number in range(each):
            last = change("volley-2", [list(Behavior)[(number + len(rater)) % 10]], base=base)
            base = last["id"]
            assert send(client, rater, path, last)[0]["status"] == "saved"
        assert last
        return last

    with running(folder, tmp_path / "data") as running_desk:
        with ThreadPoolExecutor(len(people)) as pool:
            last = dict(zip(people, pool.map(saving_all, people), strict=True))
        for rater in people[::7]:
            held = running_desk.client(rater).get(f"{path}/state").json()["items"]["volley-2"]
            assert held == {"value": last[rater]["value"], "version": last[rater]["id"]}
    with sqlite3.connect(tmp_path / "data" / "desk.sqlite") as database:
        assert database.execute("SELECT count(*), count(DISTINCT rater) FROM event").fetchone() == (50 * each, 50)
        versions = dict(database.execute("SELECT rater, version FROM state"))
        assert versions == {rater: change["id"] for rater, change in last.items()}


@pytest.mark.slow
def test_a_killed_server_has_lost_no_acknowledged_save(tmp_path: Path) -> None:
    people = [f"rater-{number}" for number in range(1, 9)]
    folder = lay(tmp_path / "blind" / "packets", {rater: [SHARED] for rater in people})
    acknowledged: list[str] = []
    links: dict[str, str] = {}

    def saving_until_it_dies(rater: str) -> None:
        base = ""
        try:
            with httpx2.Client(
                base_url=running_desk.url, headers={"Origin": running_desk.url}, follow_redirects=True, timeout=10
            ) as client:
                client.get(f"/in/{links[rater].rpartition('/')[2]}")
                base = client.get(f"/packets/{SHARED}/state").json()["items"].get("note", {"version": ""})["version"]
                while True:
                    done = change("note", uuid.uuid4().hex, base=base)
                    assert send(client, rater, f"/packets/{SHARED}", done)[0]["status"] == "saved"
                    base = done["id"]
                    acknowledged.append(base)
        except httpx2.TransportError:
            return

    for _ in range(3):
        before = len(acknowledged)
        with running(folder, tmp_path / "data") as running_desk:
            links = links or running_desk.links
            with ThreadPoolExecutor(len(people)) as pool:
                saved = [pool.submit(saving_until_it_dies, rater) for rater in people]
                deadline = time.monotonic() + 60
                while len(acknowledged) < before + 60 and time.monotonic() < deadline:
                    time.sleep(0.01)
                running_desk.process.kill()
                for future in saved:
                    future.result()
        assert len(acknowledged) >= before + 60
    with running(folder, tmp_path / "data"):
        pass
    with sqlite3.connect(tmp_path / "data" / "desk.sqlite") as database:
        kept = {change for (change,) in database.execute("SELECT id FROM event")}
        assert not set(acknowledged) - kept
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        # what holds is what the last event says, for everybody
        last = "SELECT id FROM event WHERE event.rater = state.rater ORDER BY number DESC LIMIT 1"
        stale = f"SELECT count(*) FROM state WHERE version <> ({last})"
        assert database.execute(stale).fetchone() == (0,)


def test_a_save_is_on_the_disk_before_it_is_acknowledged(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.reading() as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    store.close()


def test_a_change_that_fails_halfway_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    store, desk = Store(tmp_path / "data"), Desk("rater-1", "packets", FIRST)
    read = packets.read(folder)
    with sqlite3.connect(store.path) as other:
        other.execute("CREATE TRIGGER full BEFORE INSERT ON state WHEN NEW.item = 'note' BEGIN SELECT RAISE(ABORT, 'full'); END")
    both = [saving.Change(**change("volley-2", ["Q"])), saving.Change(**change("note", "x"))]
    with pytest.raises(sqlite3.IntegrityError, match="full"):
        saving.save(store, read, desk, both)
    assert (store.state(desk), store.history(desk)) == ({}, [])
    store.close()


def test_a_packet_that_changed_after_it_was_coded_stops_the_desk(folder: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "data")
    store.pin(packets.read(folder))
    other = {**packet(FIRST), "turns": packet(FIRST)["turns"][:4]}
    (folder / f"{FIRST}.json").write_text(json.dumps(other))
    store.pin(packets.read(folder))  # nobody had coded it
    saving.save(store, packets.read(folder), Desk("rater-1", "packets", FIRST), [saving.Change(**change("volley-2", ["Q"]))])
    (folder / f"{FIRST}.json").write_text(json.dumps(packet(FIRST)))
    with pytest.raises(Problem, match="not the transcript that was coded"):
        store.pin(packets.read(folder))
    store.close()


# ---- what a coordinator can get wrong ----


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("raters.json", "[]", "no raters"),
        ("raters.json", '{"../x": ["k7f3q2"]}', "not a rater's name"),
        ("raters.json", '{"coordinator": ["k7f3q2"]}', "not a rater's name"),
        ("raters.json", '{"rater-1": ["../key"]}', "a list of packets' ids"),
        ("raters.json", '{"rater-1": ["k7f3q2", "k7f3q2"]}', "a packet twice"),
        ("raters.json", '{"rater-1": ["zzzzzz"]}', "no such file"),
        ("k7f3q2.json", '{"packet": "k7f3q2", "turns": [{"role": "therapist", "text": "x"}]}', "turns.0.role"),
        ("k7f3q2.json", '{"packet": "k7f3q2", "turns": [{"role": "client", "text": "x"}]}', "no counselor turn"),
        ("k7f3q2.json", '{"packet": "k7f3q2", "turns": [], "arm": "tuned"}', "turns"),
        ("k7f3q2.json", '{"packet": "m2x9d4", "turns": [{"role": "counselor", "text": "x"}]}', "as the file is named"),
    ],
)
def test_packets_that_are_not_as_they_should_be_are_named(folder: Path, name: str, content: str, problem: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(Problem, match=problem):
        packets.read(folder)


@pytest.mark.parametrize(
    ("name", "old", "new", "problem"),
    [
        ("codes.csv", ",volley,", ",turn,", "columns rater, packet, turn, code"),
        ("codes.csv", f"gold,{EXERCISE},6,AF\n", "", f"nothing by gold on volley 6 of packet {EXERCISE}"),
        ("codes.csv", ",6,AF", ",5,AF", "row 5: the volley '5'"),
        ("codes.csv", ",6,AF", ",6,XX", "row 5: the code 'XX'"),
        ("codes.csv", ",6,AF", ",6", "row 5: 3 columns"),
        ("globals.csv", ",EMP,4", ",EMP,12", "the rating '12'"),
        ("globals.csv", f"gold,{EXERCISE},EMP,4\n", "", "no EMP by gold on packet"),
    ],
)
def test_gold_codes_that_do_not_fit_are_named(folder: Path, training: Path, name: str, old: str, new: str, problem: str) -> None:
    edit(training / name, {old: new})
    with pytest.raises(Problem, match=problem):
        packets.read(folder, training)


def test_gold_codes_are_those_of_one_rater_for_every_packet(folder: Path, training: Path) -> None:
    header, *rows = (training / "codes.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (training / "codes.csv").write_text("".join([header, *rows, *(row.replace("gold", "other") for row in rows)]), "utf-8")
    with pytest.raises(Problem, match="raters gold and other"):
        packets.read(folder, training)
    (training / "codes.csv").write_text(header, encoding="utf-8")
    with pytest.raises(Problem, match=f"packet {EXERCISE}: no gold codes"):
        packets.read(folder, training)


def test_a_port_in_use_and_a_missing_desk_are_problems(folder: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(Problem, match="in use"):
        serve.serve(folder, tmp_path / "data", "127.0.0.1", taken.getsockname()[1])
    with pytest.raises(Problem, match="no such file"):
        serve.export(folder, tmp_path / "nowhere", tmp_path / "out")


def test_pages_and_scripts_say_only_words_that_exist() -> None:
    script = "".join((DESK / "static" / name).read_text() for name in ("desk.js", "queue.js", "settle.js"))
    used = set(re.findall(r"words\.(\w+)", script)) | {f"reason_{reason}" for reason in get_args(saving.Reason)}
    standing = "".join(line for line in script.splitlines() if re.search(r"this\.(status|trouble)", line))
    used |= set(re.findall(r'"(\w+)"', standing))
    assert used == set(desk_texts.SCRIPT)
    said = {name for page in (DESK / "templates").iterdir() for name in re.findall(r'say\("(\w+)"\)', page.read_text())}
    told = (
        said
        | set(desk_texts.SCRIPT)
        | {"is_done", "begun", "not_begun", *get_args(Rating)}
        | {"finish_more", "finish_after_guess"}
        | {f"guess_{answer}" for answer in ANSWERS}
        | {what for _, what in desk_texts.KEY_HELP}
        | {f"go_next_{part}" for part in get_args(Part)}
        | {f"except_{kind}" for kind in get_args(overview.Kind)}
    )
    assert told == set(desk_texts.WORDS)
    acting = set(re.findall(r"(\w+|\"\?\")(?::|, n)", re.search(r"const acts = \{(.*?)\};", script, re.DOTALL)[1]))  # type: ignore[index]
    keys = list(desk_texts.KEYS.values())
    assert list(desk_texts.KEYS) == list(Behavior)
    assert len(set(keys)) == len(keys)
    assert not acting & set(keys)


# ---- in a real browser ----


@dataclass
class Watched:
    """A browser, what its pages asked for, and what they complained about."""

    browser: Any
    shots: Path
    asked: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)

    def context(self, **options: Any) -> Any:
        """A device of its own: cookies, storage, size, language, light or dark."""
        context = self.browser.new_context(**options)
        context.set_default_timeout(10_000)
        context.on("request", lambda request: self.asked.add(urlsplit(request.url).netloc))
        context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        context.on(
            "console", lambda message: self.complaints.append(message.text) if message.type in ("error", "warning") else None
        )
        return context

    def shot(self, page: Any, name: str, *, whole: bool = False) -> None:
        """A picture for whoever wants to look."""
        page.screenshot(path=self.shots / f"desk-{name}.png", full_page=whole)


@pytest.fixture
def chromium(browser: Any, tmp_path: Path) -> Iterator[Watched]:
    shots = Path(os.environ.get("MI_LLM_SCREENSHOTS", tmp_path / "screenshots"))
    shots.mkdir(parents=True, exist_ok=True)
    yield Watched(browser, shots)
    for context in browser.contexts:
        context.close()


DESKTOP = {"width": 1280, "height": 860}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 2,
}
KEY = {str(code): key for code, key in desk_texts.KEYS.items()}


def state_of(page: Any) -> str:
    return str(page.get_attribute("#save", "data-state"))


def saved(page: Any) -> None:
    page.wait_for_selector("#save[data-state=saved]")


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def marked(page: Any) -> int:
    """The volley that keys would code."""
    return int(page.get_attribute(".counselor[aria-current]", "data-volley"))


def chips(page: Any, number: int) -> list[str]:
    return list(page.locator(f"#codes-{number} .chip").all_inner_texts())


def fits(page: Any) -> bool:
    """Nothing sticks out to the side."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def open_packet(context: Any, desk: Running, person: str, name: str) -> Any:
    page = context.new_page()
    page.goto(desk.links[person])
    page.click(f"a[href='/packets/{name}']")
    page.wait_for_selector("body[data-ready]")
    return page


def test_two_raters_code_in_a_browser_and_the_export_is_what_they_typed(desk: Running, chromium: Watched) -> None:
    # the first by keyboard, on a wide screen, in English
    context = chromium.context(viewport=DESKTOP, locale="en-GB")
    page = open_packet(context, desk, "rater-1", SHARED)
    assert page.url == f"{desk.url}/packets/{SHARED}"
    assert marked(page) == 2
    press(page, "q", "s", "c")
    assert chips(page, 2) == ["Asking questions", "Simple reflections (not counted)", "Complex reflections"]
    assert page.inner_text("[data-count=SR]") == "0"  # complex stands for simple
    assert page.inner_text("[data-count=CR]") == "1"
    assert page.inner_text("#say") == "Volley 2: Asking questions, Simple reflections, Complex reflections"
    chromium.shot(page, "coding")
    press(page, "j", "a", "u", "c")  # affirming was a slip
    assert chips(page, 4) == ["Complex reflections"]
    saved(page)

    page.reload()  # midway
    page.wait_for_selector("body[data-ready]")
    assert (marked(page), chips(page, 4)) == (6, ["Complex reflections"])
    press(page, "u", "c")  # undo reaches back beyond the reload
    assert chips(page, 4) == ["Complex reflections"]
    saved(page)

    complained = len(chromium.complaints)
    context.set_offline(True)
    press(page, "Enter", "a", "j", "p", "w")
    page.wait_for_selector("#save[data-state=offline]")
    expect(page.locator("#save")).to_have_text("Offline · 3 to be saved")
    chromium.shot(page, "offline")
    page.close()  # with the network gone, the page is closed, and opened again when it is back
    context.set_offline(False)
    lost = [text for text in chromium.complaints[complained:] if "ERR_INTERNET_DISCONNECTED" not in text]
    del chromium.complaints[complained:]
    assert not lost
    page = open_packet(context, desk, "rater-1", SHARED)
    saved(page)
    assert chips(page, 8) == ["Persuading with permission", "Persuading (not counted)"]

    assert marked(page) == 10
    press(page, "n", "Enter")
    assert page.inner_text("#progress") == "5 of 5 counselor volleys · 0 of 4 globals"
    assert page.is_disabled("#finish")
    assert page.is_disabled("input[name=guess][value=real]")
    for code, rating in RATED.items():
        page.focus(f"input[name={code}][value='3']")
        press(page, str(rating))
    assert page.is_disabled("#finish")
    page.check("input[name=guess][value=real]")
    note = "<script>alert('x')</script> & <b>后半段</b>\n第二行"
    page.fill("#note", note)
    chromium.shot(page, "globals")
    page.click("#finish")
    page.wait_for_selector("#finished:visible")
    saved(page)
    page.reload()
    assert page.input_value("#note") == note
    assert page.locator("main script:not([type='application/json']), main b:has-text('后半段')").count() == 0
    page.goto(desk.url)
    chromium.shot(page, "list")

    # the second by thumb, on a phone, in Chinese, in the dark
    thumb = chromium.context(**PHONE, locale="zh-CN", color_scheme="dark")
    page = open_packet(thumb, desk, "rater-2", SHARED)
    assert page.inner_text("h1") == f"文本 {SHARED}"
    second = {2: ["Q"], 4: ["CR", "AF"], 6: ["AF"], 8: ["PERS"], 10: []}
    for number, codes in second.items():
        page.tap(f"#volley-{number} .text")
        for code in codes:
            page.tap(f"[data-code={code}]")
        if not codes:
            page.tap("#nothing")
        if number == 4:
            chromium.shot(page, "phone")
    assert fits(page)
    for code, rating in RATED.items():
        page.locator(f"input[name={code}][value='{rating}']").locator("xpath=..").tap()
    page.locator("input[name=guess][value=unsure]").locator("xpath=..").tap()
    chromium.shot(page, "phone-globals")
    assert fits(page)
    page.tap("#finish")
    page.wait_for_selector("#finished:visible")
    saved(page)

    coordinator = chromium.context(viewport=DESKTOP, locale="en").new_page()
    coordinator.goto(desk.links["coordinator"])
    assert note in coordinator.inner_text("blockquote")
    chromium.shot(coordinator, "coordinator", whole=True)
    coordinator.set_viewport_size(PHONE["viewport"])
    assert fits(coordinator)
    coordinator.set_viewport_size(DESKTOP)
    with coordinator.expect_download() as download:
        coordinator.click("text=codes.csv")
    first = {**{number: CODED[number] for number in (4, 6, 8, 10)}, 2: ["Q", "SR", "CR"]}
    assert rows(download.value.path().read_text()) == typed("rater-1", SHARED, first) + typed("rater-2", SHARED, second)
    with coordinator.expect_download() as download:
        coordinator.click("text=globals.csv")
    ratings = [(row["rater"], row["code"], int(row["rating"])) for row in rows(download.value.path().read_text())]
    assert ratings == [(rater, code, RATED[code]) for rater in ("rater-1", "rater-2") for code in sorted(RATED)]
    with coordinator.expect_download() as download:
        coordinator.click("text=guesses.csv")
    guesses = [(row["rater"], row["guess"]) for row in rows(download.value.path().read_text())]
    assert guesses == [("rater-1", "real"), ("rater-2", "unsure")]

    assert chromium.complaints == []
    assert chromium.asked == {urlsplit(desk.url).netloc}


def test_two_windows_lose_nothing_silently(desk: Running, chromium: Watched) -> None:
    laptop, home = (chromium.context(viewport=DESKTOP, locale="en") for _ in range(2))
    one = open_packet(laptop, desk, "rater-1", FIRST)
    tab = open_packet(laptop, desk, "rater-1", FIRST)
    far = open_packet(home, desk, "rater-1", FIRST)

    one.keyboard.press("q")  # a tab beside it follows at once, and goes on from there
    tab.wait_for_selector("#codes-2 .chip:text('Asking questions')")
    press(tab, "s")
    one.wait_for_selector("#codes-2 .chip:text('Simple reflections')")
    saved(one)

    far.wait_for_function("document.querySelector('#codes-2').textContent === 'not coded'")
    press(far, "a")  # another device, which has not seen this
    far.wait_for_selector(".notice")
    assert far.inner_text(".notice p") == (
        "Volley 2 changed in another window or on another device. Here: Affirming. There: Asking questions, Simple reflections."
    )
    chromium.shot(far, "conflict")
    far.reload()  # the question stays until it is answered
    far.wait_for_selector(".notice")
    far.click("text=Keep the version here")
    saved(far)
    assert (chips(far, 2), far.locator(".notice").count()) == (["Affirming"], 0)

    press(one, "e")  # by now the laptop is behind
    one.wait_for_selector(".notice")
    one.click("text=Use the other version")
    assert chips(one, 2) == ["Affirming"]
    for page in (one, far):
        page.reload()
        assert (chips(page, 2), page.locator(".notice").count()) == (["Affirming"], 0)
    assert chromium.complaints == []


def test_a_change_that_the_server_cannot_read_holds_up_no_other(desk: Running, chromium: Watched) -> None:
    context = chromium.context(viewport=DESKTOP, locale="en")
    page = open_packet(context, desk, "rater-1", FIRST)
    context.set_offline(True)
    press(page, "q")
    page.evaluate(  # half a character, as a page of before could keep it
        """([path, id]) => localStorage.setItem(`desk rater-1 ${String(Date.now()).padStart(16, "0")} ${path} ${id}`,
            JSON.stringify({ id, item: "note", value: "half \\ud800", base: "", undoes: null }))""",
        [f"/packets/{FIRST}", uuid.uuid4().hex],
    )
    press(page, "j", "c")
    context.set_offline(False)
    page.wait_for_selector(".notice")
    saved(page)
    items = desk.client("rater-1").get(f"/packets/{FIRST}/state").json()["items"]
    assert {name: item["value"] for name, item in items.items()} == {"volley-2": ["Q"], "volley-4": ["CR"]}
    page.reload()  # set aside, not thrown away
    page.wait_for_selector(".notice")
    assert page.inner_text(".notice p") == "Note was not changed: the desk cannot read it, please tell the coordinator."
    page.click("text=Understood")
    assert page.input_value("#note") == ""
    page.reload()
    page.wait_for_selector("body[data-ready]")
    saved(page)
    assert (chips(page, 2), chips(page, 4)) == (["Asking questions"], ["Complex reflections"])

    page.evaluate("document.getElementById('note').value = 'half \\ud800, whole 😀'")
    with page.expect_response(lambda answer: answer.url.endswith("/changes")) as answered:
        page.dispatch_event("#note", "blur")
    assert answered.value.json()[0]["value"] == "half \ufffd, whole 😀"
    saved(page)
    assert page.locator(".notice").count() == 0


def test_a_training_shows_the_agreement_at_once(desk: Running, chromium: Watched) -> None:
    page = chromium.context(viewport=DESKTOP, locale="en").new_page()
    page.goto(desk.links["rater-2"])
    page.click(f"a[href='/training/{EXERCISE}']")
    page.wait_for_selector("body[data-ready]")
    press(page, "q", "a")
    assert page.locator(".gold:visible").count() == 0
    press(page, "Enter")
    page.wait_for_selector("#gold-2:visible")
    assert page.locator("#gold-2 .chip").all_inner_texts() == [
        "Agreed: Asking questions", "Missed: Simple reflections", "Not in the gold codes: Affirming",
    ]  # fmt: skip
    press(page, "s")  # too late
    assert chips(page, 2) == ["Asking questions", "Affirming"]
    for key in ("c", "a", "p"):
        press(page, "Enter", key, "Enter")
    press(page, "Enter", "n", "Enter")
    page.wait_for_selector("#gold-10:visible")
    chromium.shot(page, "training")
    for code in RATED:
        page.check(f"input[name={code}][value='3']")
    page.click("#finish")
    page.wait_for_selector("#result")
    chromium.shot(page, "training-result", whole=True)
    assert chromium.complaints == []


def test_keys_of_an_input_method_are_not_the_desks(desk: Running, chromium: Watched) -> None:
    page = open_packet(chromium.context(viewport=DESKTOP, locale="zh-CN"), desk, "rater-1", SHARED)
    pressed = """([key, code]) => document.querySelector(".counselor[aria-current]").dispatchEvent(
        new KeyboardEvent("keydown", { key, code, keyCode: 229, bubbles: true, cancelable: true }))"""
    page.evaluate(pressed, ["Enter", "Enter"])
    assert marked(page) == 2
    page.evaluate(pressed, ["Process", "KeyJ"])
    assert marked(page) == 4


def test_a_link_in_web_mail_signs_in_and_leaves_no_token_in_the_address(desk: Running, chromium: Watched) -> None:
    context = chromium.context(viewport=DESKTOP, locale="en")
    page = context.new_page()
    mail = f"<!doctype html><link rel=icon href='data:,'><a href='{desk.links['rater-1']}'>your link</a>"
    page.route("http://mail.example/", lambda route: route.fulfill(content_type="text/html", body=mail))
    page.goto("http://mail.example/")
    page.click("text=your link")
    page.wait_for_selector(f"a[href='/packets/{FIRST}']")
    assert page.url == f"{desk.url}/"
    (cookie,) = context.cookies(desk.url)
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert cookie["value"] not in desk.links["rater-1"]


def test_signed_out_a_page_says_so_and_keeps_what_was_typed(
    desk: Running, chromium: Watched, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = chromium.context(viewport=DESKTOP, locale="en")
    page = open_packet(context, desk, "rater-1", FIRST)
    serve.links(folder, tmp_path / "data", desk.url, renew="rater-1")
    press(page, "q")
    page.wait_for_selector("#save[data-state=signed_out]")
    expect(page.locator("#save")).to_have_text("1 not saved: open your personal link again; nothing is lost")
    page.goto(capsys.readouterr().out.split()[-1])
    saved(page)  # the list sends what waited
    page.click(f"a[href='/packets/{FIRST}']")
    page.wait_for_selector("body[data-ready]")
    assert chips(page, 2) == ["Asking questions"]


def test_a_coding_page_can_be_used_without_seeing_it(desk: Running, chromium: Watched) -> None:
    page = open_packet(chromium.context(viewport=DESKTOP, locale="en"), desk, "rater-1", FIRST)
    names = page.evaluate("""() => [...document.querySelectorAll("button, a, input, textarea")]
        .filter((one) => one.checkVisibility())
        .map((one) => one.textContent.trim() || [...(one.labels ?? [])].map((label) => label.textContent.trim()).join(" "))""")
    assert len(names) > 30
    assert all(names)
    assert page.get_by_role("group", name=re.compile("Counselor Volley 2 .*not coded")).count() == 1
    assert page.get_by_role("button", name="Asking questions").get_attribute("aria-keyshortcuts") == "q"
    assert page.get_by_role("group", name="Empathy").get_by_role("radio").count() == 5
    contrast = page.evaluate("""() => {
        const luminance = (color) => color.match(/[0-9.]+/g).slice(0, 3).map(Number)
            .map((part) => part / 255).map((part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
            .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
        const ground = luminance(getComputedStyle(document.documentElement).backgroundColor);
        const read = [".client .text", ".counselor .text", ".speaker", ".count", ".chip", ".lead", "a", ".now"];
        return Object.fromEntries(read.map((one) => {
            const ink = luminance(getComputedStyle(document.querySelector(one)).color);
            return [one, (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05)];
        }));
    }""")
    assert {one: ratio for one, ratio in contrast.items() if ratio < 4.5} == {}  # WCAG 2.2, level AA
