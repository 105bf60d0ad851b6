"""The screening pages: a person reads originals beside rewritings, decides by keys, and the file of decisions says so."""

import csv
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from looks import WIDTHS, problems, serious_faults
from repository import ROOT

from mi_llm import storage
from mi_llm.apps.screening.app import Screening, View, create, following
from mi_llm.construct.screen import decisions, screen, segments
from mi_llm.dialog import Dialog, Turn, read_dialogs, write_dialogs
from mi_llm.language import language
from mi_llm.problem import Problem
from mi_llm.study import Study


def rewritten(number: int, replies: list[str]) -> dict[str, Any]:
    """A line of `transcribed.jsonl`."""
    client = {"role": "client", "content": f"我睡不好，第{number}次了。"}
    turns = [turn for reply in replies for turn in (client, {"role": "counselor", "content": reply})]
    return {"dialog": str(number), "source": "sleep", "key": f"{number}" * 4, "answer": storage.dump(turns)}


def calm(number: int) -> list[str]:
    """Replies in which the checks see nothing."""
    return [f"您睡不好，很累了。第{number}夜您想些什么？", f"睡不好的时候，您第{number}次想到的是什么？"]


@pytest.fixture
def transcribed(study: Study) -> Study:
    """Five rewritten dialogs with their originals; the last one has a remark, and so comes first."""
    entries = [rewritten(number, calm(number)) for number in range(1, 5)]
    entries.append(rewritten(5, ["你应该早点睡，听我的。", "你为什么不睡？第二次听我的。"]))
    storage.write_lines(study.path("transcribe", "transcribed.jsonl"), entries)
    heard = Turn(role="counselor", text="嗯")
    originals = [
        Dialog(id=str(number), source="sleep", turns=(Turn(role="client", text=f"原来的话{number}"), heard))
        for number in range(1, 6)
    ]
    write_dialogs(study.path("read", "sleep", "dialogs.jsonl"), originals)
    return study


@contextmanager
def running(study: Study) -> Iterator[str]:
    """`mi-llm screen --open` in a process of its own; yields its address."""
    command = [sys.executable, "-m", "mi_llm", "screen", "--open", "--study", study.params, "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            announced = re.match(r"Screening is open: (\S+) .* Decisions: mini/decisions/decisions\.csv", line)
            assert announced, line
            httpx2.get(announced[1], timeout=30)
            yield announced[1]
        finally:
            process.send_signal(signal.SIGINT)


def written() -> list[list[str]]:
    with Path("mini/decisions/decisions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def test_dialogs_with_remarks_come_first_and_views_divide_them(transcribed: Study) -> None:
    screening = Screening(transcribed)
    assert screening.dialogs[0].name == "sleep/5"
    assert screening.originals["sleep/5"].turns[0].text == "原来的话5"
    assert screening.numbers(View("remarks", 0), {}) == [1]
    halves = [screening.numbers(View("open", half), {}) for half in (1, 2)]
    assert halves == [[1, 3, 5], [2, 4]]  # nothing twice, nothing left out
    assert following([1, 3, 5], 3) == 5
    assert following([1, 3, 5], 5) == 1
    assert following([5], 5) is None


def test_what_a_check_saw_is_marked_in_place() -> None:
    turn = Turn(role="counselor", text="你应该早睡。我的电话是13812345678。慢慢来吧慢慢来吧慢慢来吧。")
    pieces = segments(turn, language.load("zh"))
    assert "".join(text for text, _ in pieces) == turn.text
    kinds = {kind: text for text, kind in pieces if kind}
    assert kinds["personal data"] == "13812345678"
    assert kinds["against MI"] == "你应该"
    assert "慢慢来吧" in kinds["repetitive"]
    client_turn = Turn(role="client", text="你应该早睡。")
    assert segments(client_turn, language.load("zh")) == [(client_turn.text, "")]  # what clients say is no cue


def test_a_person_decides_by_keys_and_the_stage_takes_it(transcribed: Study, browser: Any) -> None:
    with running(transcribed) as address:
        page = browser.new_page()
        complaints: list[str] = []
        page.on("console", lambda told: complaints.append(told.text))
        page.goto(f"{address}/?lang=en")
        assert "0 of 5 decided" in page.inner_text("main")
        page.click("a.begin")
        assert page.inner_text(".beside section:first-child div p:first-child").endswith("原来的话5")
        assert page.locator("mark").count() > 0
        page.keyboard.press("d")  # goes to the field of the initials, which are not given yet
        page.fill("[name=who]", "AB")
        page.keyboard.press("Escape")
        page.keyboard.press("d")
        page.wait_for_url("**/dialogs/2?*")
        assert written()[0][:2] == ["sleep/5", "drop"]
        assert written()[0][3] == "AB"
        page.keyboard.press("k")
        page.wait_for_url("**/dialogs/3?*")
        page.keyboard.press("n")
        page.wait_for_url("**/dialogs/4?*")
        page.keyboard.press("k")
        page.wait_for_url("**/dialogs/5?*")
        page.keyboard.press("k")
        page.wait_for_url("**/dialogs/3?*")  # the one that was passed over
        page.goto(f"{address}/dialogs/2?show=all")
        assert "Decided: keep (AB" in page.inner_text("form")
        with page.expect_navigation():
            page.keyboard.press("u")
        assert "sleep/1" not in [row[0] for row in written()]
        assert complaints == []
        page.close()
    screen(transcribed)
    kept = [dialog.id for dialog in read_dialogs(transcribed.path("screen", "dialogs.jsonl"))]
    assert kept == ["sleep/1", "sleep/2", "sleep/3", "sleep/4"]


def test_a_corrected_dialog_must_be_one_and_is_kept_as_corrected(transcribed: Study) -> None:
    with running(transcribed) as address, httpx2.Client(base_url=address, headers={"Origin": address}, timeout=30) as client:
        form = {"decision": "fix", "who": "AB", "reason": "an ending", "text": "来访者：我想戒烟。"}
        refused = client.post("/dialogs/1?lang=en", data=form)
        assert refused.status_code == 422
        assert "only one side speaks" in refused.text
        assert "我想戒烟。" in refused.text  # what was typed is not lost
        assert written() == []
        assert not Path("mini/decisions/sleep_5.txt").exists()
        form["text"] = "来访者：我想戒烟。\r\n咨询师：您想戒烟。"
        assert client.post("/dialogs/1", data=form).status_code == 303
    screen(transcribed)
    kept = {dialog.id: dialog for dialog in read_dialogs(transcribed.path("screen", "dialogs.jsonl"))}
    assert [turn.text for turn in kept["sleep/5"].turns] == ["我想戒烟。", "您想戒烟。"]


def test_others_cannot_decide_and_nobody_decides_without_a_name(transcribed: Study) -> None:
    with running(transcribed) as address, httpx2.Client(base_url=address, timeout=30) as client:
        form = {"decision": "drop", "who": "AB"}
        assert client.post("/dialogs/1", data=form, headers={"Origin": "https://evil.example"}).status_code == 403
        assert client.post("/dialogs/1", data=form).status_code == 403
        assert client.get("/", headers={"Host": "evil.example"}).status_code == 404
        assert client.get("/dialogs/99").status_code == 404
        own = {"Origin": address}
        assert client.post("/dialogs/1", data={"decision": "drop"}, headers=own).status_code == 422
        assert client.post("/dialogs/1", data={"decision": "burn", "who": "AB"}, headers=own).status_code == 422
        assert written() == []


def test_a_decision_file_that_is_wrong_is_told_before_anything_is_lost(transcribed: Study) -> None:
    path = Path("mini/decisions/decisions.csv")
    path.write_text("dialog,decision,reason,who,when\nsleep/9,keep,,A,2026-11-01\n", encoding="utf-8")
    with pytest.raises(Problem, match="no dialog 'sleep/9'"):
        create(transcribed)
    assert "sleep/9" in path.read_text(encoding="utf-8")
    path.unlink()
    storage.write_lines(transcribed.path("transcribe", "transcribed.jsonl"), [])
    create(transcribed)
    assert decisions(Path("mini/decisions"), set()) == {}


@pytest.mark.slow
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_pages_fit_and_can_be_read_in_either_theme(transcribed: Study, browser: Any, lang: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed").Axe()
    with running(transcribed) as address:
        for path in ("/?show=all", "/dialogs/1?show=all"):
            for width in WIDTHS:
                page = browser.new_page(viewport={"width": width, "height": 860})
                page.goto(f"{address}{path}&lang={lang}")
                assert problems(page) == [], (path, width)
                page.close()
            for scheme in ("light", "dark"):
                page = browser.new_page(color_scheme=scheme)
                page.goto(f"{address}{path}&lang={lang}")
                assert serious_faults(page, axe) == [], (path, scheme)
                page.close()


def test_the_page_of_the_result_shows_portions_and_leads_to_a_dialog(transcribed: Study, browser: Any) -> None:
    many = [rewritten(number, calm(number)) for number in range(1, 121)]
    storage.write_lines(transcribed.path("transcribe", "transcribed.jsonl"), many)
    screen(transcribed)
    page = browser.new_page(viewport={"width": 1280, "height": 860})
    where = transcribed.path("screen", "dialogs.html").resolve().as_uri()
    page.goto(where)
    assert page.locator("#dialogs article:visible").count() == 50
    assert page.evaluate("document.documentElement.scrollHeight") < 4000
    page.click("#after")
    assert page.inner_text("#count") == "51 to 100 of 120"
    page.goto(f"{where}#sleep/117")
    page.reload()
    assert page.locator("article:has(details[open])").get_attribute("id") == "sleep/117"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#dialogs article:visible").count() == 120  # paper has no next portion
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.fill("[name=words]", "第33夜")
    assert page.locator("#dialogs article:visible").count() == 1
    assert problems(page) == []
    page.close()
