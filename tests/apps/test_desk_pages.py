"""What the desk's pages lead to: training first, keys that cannot slip, what comes next, and the coordinator's overview."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect
from test_desk import (
    DESKTOP,
    EXERCISE,
    FIRST,
    GOLD,
    KEY,
    RATED,
    SECOND,
    SHARED,
    TALK,
    Running,
    change,
    code_all,
    fits,
    lay,
    lay_training,
    press,
    running,
    saved,
    send,
)

from mi_llm.apps.desk import overview
from mi_llm.apps.desk.store import BREAK_S, Desk, Held, Store, Work
from mi_llm.codebook import packets
from mi_llm.codebook.coding import Behavior, Global


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    place = tmp_path_factory.mktemp("desk")
    raters = {"rater-1": [SHARED, FIRST], "rater-2": [SECOND, SHARED], "rater-3": [FIRST], "rater-4": [FIRST]}
    with running(lay(place / "blind" / "packets", raters), place / "data", lay_training(place / "training")) as open_desk:
        yield open_desk


def opened(browser: Any, desk: Running, person: str, path: str, locale: str = "en", **options: Any) -> Any:
    context = browser.new_context(**{"viewport": DESKTOP, "locale": locale, **options})
    page = context.new_page()
    page.goto(desk.links[person])
    page.goto(f"{desk.url}{path}")
    if path.count("/") == 2:
        page.wait_for_selector("body[data-ready]")
    return page


def test_letters_rest_at_the_globals_and_digits_rate(desk: Running, browser: Any) -> None:
    page = opened(browser, desk, "rater-1", f"/packets/{FIRST}")
    for key in ("q", "c", "a", "p"):
        press(page, key, "Enter")
    press(page, "n", "Enter")
    assert page.evaluate("document.activeElement.dataset.global") == "CCT"
    coded = page.locator(".talk .codes").all_inner_texts()
    press(page, "f", "n", "g")
    assert page.locator(".talk .codes").all_inner_texts() == coded
    assert "letters have no effect" in page.inner_text("#hint")
    assert page.is_visible(".palette .tally")
    assert page.inner_text(".palette [data-count=Q]") == "1"
    assert TALK[-2][1] in page.inner_text(".copy")
    assert not page.is_visible(f"[data-code={Behavior.CONFRONT}]")
    press(page, "4", "3", "5", "2")
    assert [page.is_checked(f"input[name={code}][value='{rating}']") for code, rating in zip(Global, "4352", strict=True)] == [
        True
    ] * 4
    press(page, "Control+z")
    assert page.locator(f"input[name={Global.PARTNERSHIP}]:checked").count() == 0
    press(page, "1", "ArrowUp", "ArrowUp", "ArrowUp", "ArrowUp")
    assert page.get_attribute(".counselor[aria-current]", "data-volley") == "10"
    assert page.is_visible(f"[data-code={Behavior.CONFRONT}]")
    press(page, "b", "Control+z")
    assert page.inner_text("#codes-10") == "nothing to code"
    page.focus(f"[data-global={Global.EMPATHY}]")
    press(page, "Enter")
    assert page.evaluate("document.activeElement.name") == "guess"
    press(page, "ArrowDown", "Enter")
    assert page.evaluate("document.activeElement.id") == "finish"
    press(page, "Enter")
    page.wait_for_selector("#onward a")
    assert page.inner_text("#onward a") == "Next transcript (1 of 2)"
    page.click("#onward a")
    assert page.url.endswith(f"/packets/{SHARED}")
    assert "1 of 2" in page.inner_text(".bar")


def test_a_letter_changes_no_volley_that_is_out_of_sight(desk: Running, browser: Any) -> None:
    page = opened(browser, desk, "rater-2", f"/packets/{SECOND}", viewport={"width": 1280, "height": 420})
    page.evaluate("document.getElementById('volley-8').scrollIntoView()")
    page.wait_for_function("document.querySelector('#volley-2').getBoundingClientRect().bottom < 0")
    press(page, "q")
    assert page.inner_text("#codes-2") == "not coded"
    assert "Press again" in page.inner_text("#hint")
    press(page, "q")
    assert page.inner_text("#codes-2") == "Asking questions"
    saved(page)


@pytest.mark.parametrize(("locale", "name"), [("en", "q"), ("zh-CN", "q")])
def test_the_keys_are_seen_on_a_phone_in_both_languages(desk: Running, browser: Any, locale: str, name: str) -> None:
    page = opened(browser, desk, "rater-2", f"/packets/{SHARED}", locale, viewport={"width": 390, "height": 844})
    keys = page.locator(".palette kbd:visible").all_inner_texts()
    assert set(KEY.values()) | {"n", "u", "↵", "?"} <= set(keys)
    assert fits(page)


def test_all_turns_are_numbered_as_in_the_export(desk: Running, browser: Any) -> None:
    page = opened(browser, desk, "rater-3", f"/packets/{FIRST}")
    numbers = [int(number) for number in page.locator(".turns .place").all_inner_texts()]
    assert numbers == list(range(1, len(TALK) + 1))
    assert [int(number) for number in page.locator(".counselor").evaluate_all("all => all.map(one => one.dataset.volley)")] == [
        number for number in numbers if TALK[number - 1][0] == "counselor"
    ]


def test_the_training_stands_first_and_its_result_is_in_view(desk: Running, browser: Any) -> None:
    page = opened(browser, desk, "rater-4", "/")
    assert page.inner_text("a.main") == "Begin with the training"
    assert page.locator("h2").all_inner_texts()[0] == "Training"
    steps = [[change(f"volley-{number}", codes), change(f"shown-{number}", True)] for number, codes in GOLD.items()]
    ratings = [change(f"global-{code}", rating) for code, rating in RATED.items()]
    client = desk.client("rater-4")
    send(client, "rater-4", f"/training/{EXERCISE}", *(one for step in steps for one in step), *ratings)
    page.goto(f"{desk.url}/training/{EXERCISE}")
    page.click("#finish")
    page.wait_for_selector("#result")
    assert "κ 1.00" in page.inner_text("#result p")
    box = page.locator("#result p").first.bounding_box()
    assert 0 < box["y"] < DESKTOP["height"]
    page.click("#result a.main")
    assert page.url.endswith(f"/packets/{FIRST}")


def test_the_coordinator_sees_one_bar_a_rater_and_what_stands_out(desk: Running, browser: Any) -> None:
    for rater in ("rater-1", "rater-2"):
        client, path = desk.client(rater), f"/packets/{SHARED}"
        if not client.get(f"{path}/state").json()["items"].get("done"):
            code_all(client, rater, path)
    page = opened(browser, desk, "coordinator", "/")
    assert "no training exercises" not in page.inner_text("main")
    assert page.locator("svg.bar-of").count() == 4
    assert page.locator(".chips:visible").count() == 0
    assert "rater-3: no transcript started" in page.inner_text("#exceptions")
    assert page.locator(".plot li:not(.axis)").count() >= 5
    assert page.locator(".plot li:not(.axis) .limit").count() >= 15
    for width in (390, 820, 1280):
        page.set_viewport_size({"width": width, "height": 860})
        assert fits(page)


def test_what_all_have_finished_is_not_reopened_and_the_desk_says_so(desk: Running, browser: Any) -> None:
    for rater in ("rater-1", "rater-2"):
        client, path = desk.client(rater), f"/packets/{SHARED}"
        if not client.get(f"{path}/state").json()["items"].get("done"):
            code_all(client, rater, path)
    page = opened(browser, desk, "rater-1", f"/packets/{SHARED}")
    page.click("#reopen")
    expect(page.locator(".notice p")).to_have_text(
        "This transcript was not changed: all its raters have finished, so it can no longer change."
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lists_and_globals_can_be_used_without_seeing_them(desk: Running, browser: Any, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed").Axe()
    page = opened(browser, desk, "rater-3", f"/packets/{FIRST}", color_scheme=scheme)
    page.evaluate("document.getElementById('after').scrollIntoView()")
    press(page, "3")
    assert page.is_visible(".copy")
    for path in ("", "/", f"/training/{EXERCISE}"):
        if path:
            page.goto(f"{desk.url}{path}")
        found = axe.run(page).response["violations"]
        assert [f"{one['id']}: {node['html'][:100]}" for one in found for node in one["nodes"]] == []


# ---- what is computed


def test_work_is_counted_without_breaks_and_gives_the_pace(tmp_path: Path) -> None:
    folder = lay(tmp_path / "packets", {"A": [SHARED, FIRST, SECOND]})
    desk = packets.read(folder)
    store = Store(tmp_path / "data")
    with store.writing() as database:
        for number, minute in enumerate((0, 1, 61, 62)):  # an hour's break counts as five minutes
            database.execute(
                "INSERT INTO event (made, rater, part, packet, id, item, before, value, base)"
                " VALUES (?, 'A', 'packets', ?, ?, 'note', '\"\"', '\"\"', '')",
                (f"2026-11-01T{10 + minute // 60:02}:{minute % 60:02}:00.000Z", SHARED, f"change-{number}"),
            )
    work = store.work()
    store.close()
    assert work[Desk("A", "packets", SHARED)].seconds == pytest.approx(60 + BREAK_S + 60, abs=0.01)
    states = {Desk("A", "packets", SHARED): {"done": Held(True, "x")}, Desk("A", "packets", FIRST): {"note": Held("x", "x")}}
    pace = overview.pace(desk, states, work, "A")
    assert (pace.done, pace.begun, pace.total) == (1, 1, 3)
    assert pace.minutes == pytest.approx(7)
    assert pace.left == pytest.approx(14)
    assert overview.pace(desk, {}, work, "A").left is None
    following = overview.upcoming(desk, states, "A", "packets", FIRST)
    assert following == overview.Next("packets", SECOND, 3, 3)
    assert (
        overview.upcoming(desk, {Desk("A", "packets", name): {"done": Held(True, "x")} for name in desk.study}, "A", "training")
        is None
    )


def test_packets_that_lie_still_and_raters_who_have_not_begun_are_named(tmp_path: Path) -> None:
    desk = packets.read(lay(tmp_path / "packets", {"A": [SHARED], "B": [SHARED]}), lay_training(tmp_path / "training"))
    states = {Desk("A", "packets", SHARED): {"note": Held("x", "x")}}
    work = {Desk("A", "packets", SHARED): Work(60, "2026-11-01T10:00:00.000Z")}
    found = overview.exceptions(desk, states, work, 0.6, datetime(2026, 11, 20, tzinfo=UTC))
    assert [(one.kind, one.rater, one.packet, one.value) for one in found] == [
        ("untrained", "A", "", 1), ("stalled", "A", SHARED, 18), ("untrained", "B", "", 1), ("idle", "B", "", 0),
    ]  # fmt: skip
