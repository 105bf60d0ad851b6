"""The chat and the desk, photographed at four widths in both themes and languages, to be looked at one by one.

The pictures go into the folder that MI_LLM_SCREENSHOTS names; without it, into the test's own.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chatting import Served, chat_fixture
from looks import WIDTHS, photograph, problems
from test_desk import CODED, FIRST, SECOND, SHARED, Running, change, code_all, lay, lay_training, running, send

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("scheme", ["light", "dark"]),
    pytest.mark.parametrize("locale", ["en", "zh-CN"]),
]
HALF = [change(f"volley-{number}", CODED[number]) for number in (2, 4)]


chat = chat_fixture("chat", delay=0.001)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two raters have finished one transcript and differ; the third has begun another."""
    place = tmp_path_factory.mktemp("desk")
    raters = {"rater-1": [SHARED, FIRST], "rater-2": [SECOND, SHARED], "rater-3": [FIRST]}
    with running(lay(place / "blind" / "packets", raters), place / "data", lay_training(place / "training")) as open_desk:
        code_all(open_desk.client("rater-1"), "rater-1", f"/packets/{SHARED}")
        code_all(open_desk.client("rater-2"), "rater-2", f"/packets/{SHARED}", {**CODED, 2: ["SR", "Q"]})
        send(open_desk.client("rater-3"), "rater-3", f"/packets/{FIRST}", *HALF)
        yield open_desk


def look(page: Any, name: str, scheme: str, tmp_path: Path) -> None:
    photograph(page, name, scheme, tmp_path)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert problems(page) == [], (name, width)


def say(page: Any, text: str) -> None:
    page.fill("#say", text)
    page.press("#say", "Enter")
    page.wait_for_selector("#rounds > li:last-child .reply:not(.coming), #rounds > li:last-child .found", timeout=20_000)
    page.wait_for_selector("#stop", state="hidden", timeout=20_000)


def test_the_chat_is_photographed(chat: Served, browser: Any, tmp_path: Path, locale: str, scheme: str) -> None:
    context = browser.new_context(locale=locale, color_scheme=scheme)
    page = context.new_page()
    page.goto(chat.url)
    look(page, f"chat-start.{locale}", scheme, tmp_path)
    for text in ("#eos 说：少喝一点，会给您带来什么？", "#eos 说：听起来，您一边想睡好，一边累的时候离不开那口酒。"):
        say(page, text)
    look(page, f"chat-talk.{locale}", scheme, tmp_path)
    say(page, "我不想活了")
    look(page, f"chat-danger.{locale}", scheme, tmp_path)
    context.close()


@pytest.mark.parametrize(
    ("name", "person", "path"),
    [
        ("list", "rater-1", "/"),
        ("training", "rater-1", "/training/t4h6w8"),
        ("coding", "rater-3", f"/packets/{FIRST}"),
        ("finished", "rater-1", f"/packets/{SHARED}"),
        ("coordinator", "coordinator", "/"),
        ("settle", "coordinator", f"/settle/{SHARED}"),
    ],
)
def test_the_desk_is_photographed(
    desk: Running, browser: Any, tmp_path: Path, locale: str, scheme: str, name: str, person: str, path: str
) -> None:
    context = browser.new_context(locale=locale, color_scheme=scheme)
    page = context.new_page()
    page.goto(desk.links[person])
    page.goto(f"{desk.url}{path}")
    look(page, f"desk-{name}.{locale}", scheme, tmp_path)
    context.close()
