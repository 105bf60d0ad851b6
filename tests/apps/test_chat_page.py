"""What the chat's page leads to: the study's notice, cards, keys, codes and their counts, taking a talk away, experiments."""

import asyncio
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from chatting import Served, begin, browsing, chat_fixture, final, say, serving
from repository import ROOT

from mi_llm.apps.chat import codes, experiment
from mi_llm.apps.chat.app import Chat, create
from mi_llm.apps.chat.cards import cards
from mi_llm.apps.chat.counselors import Counselors
from mi_llm.apps.chat.serve import manner
from mi_llm.apps.chat.talks import VOTE_ROUNDS
from mi_llm.apps.chat.votes import Votes
from mi_llm.codebook.coding import Behavior, Text
from mi_llm.problem import Problem
from mi_llm.study import load

EXPERIMENT = """
model: tiny
arms: [base, tuned]
seed: 7
participants: [p01, p02, p03, p04]
consent:
  en: |
    What you write is kept for this study.

    You may stop at any time.
  zh: 你写的话会为本研究保存。你可以随时停止。
"""
PHONE = (390, 844)

served = chat_fixture("page", delay=0.02)


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("trial")
    (folder / "experiment.yaml").write_text(EXPERIMENT, encoding="utf-8")
    with serving(folder, experiment=folder / "experiment.yaml") as open_chat:
        yield open_chat


# ---- the page


def test_the_studys_notice_stands_under_the_models_name_at_all_times(browser: Any, served: Served, tmp_path: Path) -> None:
    report = load(ROOT / "mini" / "params.yaml").report
    for locale, notice, size in (
        ("en", report.notice, "2.6 million parameters."), ("zh-CN", report.notice_zh, "256 万参数。"),
    ):  # fmt: skip
        with browsing(browser, served, tmp_path, *PHONE, locale) as seen:
            assert seen.page.inner_text(".always .study") == notice
            assert size in seen.page.inner_text("#answering")
            seen.send("我睡不好")
            assert size in seen.page.inner_text("#answering")
            box = seen.page.locator(".always .study").bounding_box()
            assert 0 <= box["y"] < PHONE[1] / 2


def test_a_model_whose_server_tells_no_size_stands_without_one(browser: Any, served: Served, tmp_path: Path) -> None:
    with browsing(browser, served, tmp_path, 1280, 860, "en") as seen:
        seen.page.select_option("#model", "lone")
        assert seen.page.inner_text("#answering") == "Model: lone"


@pytest.mark.parametrize("locale", ["en", "zh-CN"])
def test_on_a_phone_the_header_is_small_and_clients_are_in_sight(
    browser: Any, served: Served, tmp_path: Path, locale: str
) -> None:
    with browsing(browser, served, tmp_path, *PHONE, locale) as seen:
        page, (width, height) = seen.page, PHONE
        client = page.locator(".people .choice").nth(1).bounding_box()
        assert client["x"] < width
        assert client["y"] < page.locator(".field").bounding_box()["y"] - 40
        page.locator(".people .choice").nth(1).click()
        client = page.locator(".people :checked + span").bounding_box()
        starter = page.locator(".starters:visible button").first.bounding_box()
        assert client["y"] + client["height"] <= starter["y"], "the sentences that come up do not cover the client"
        seen.send("我晚上总是吃零食")
        assert page.locator(".top").bounding_box()["height"] < height / 4
        assert page.get_by_text("Text is not kept." if locale == "en" else "文字不保存。").first.is_visible()
        assert page.locator("#say").bounding_box()["y"] < height
        seen.menu()
        page.click("#theme")
        assert page.get_attribute("html", "data-theme") == "dark"


def test_a_new_talk_is_side_by_side_and_the_keys_are_listed(browser: Any, served: Served, tmp_path: Path) -> None:
    with browsing(browser, served, tmp_path, 1280, 860, "en") as seen:
        assert seen.page.is_checked("input[value=beside]")
        for key in ("Enter", "Shift+Enter", "↑", "Esc"):
            assert key in seen.page.inner_text("#keys")
        seen.page.click(".own summary")
        assert seen.page.inner_text(".own code").startswith("mi-llm chat --model-url http")


@pytest.mark.parametrize(("locale", "name"), [("en", "Eating less at night"), ("zh-CN", "减少夜间进食")])
def test_a_clients_card_is_in_the_pages_language_and_offers_sentences(
    browser: Any, served: Served, tmp_path: Path, locale: str, name: str
) -> None:
    with browsing(browser, served, tmp_path, *PHONE, locale) as seen:
        page = seen.page
        page.check("input[value=night-snacks]")
        assert name in page.inner_text(".choice:has(:checked) >> nth=-1")
        page.locator(".starters:visible button").first.click()
        opening = cards("zh")["night-snacks"].starters[0]
        assert page.input_value("#say") == opening.zh
        page.press("#say", "Enter")
        page.wait_for_selector("#rounds .reply:not(.coming)")
        assert name in page.inner_text(".card:visible summary")
        assert page.locator("#say").bounding_box()["y"] < PHONE[1]


@pytest.mark.parametrize("locale", ["en", "zh-CN"])
def test_danger_in_chinese_is_answered_with_lines_in_chinese_and_offers_no_role(
    browser: Any, served: Served, tmp_path: Path, locale: str
) -> None:
    with browsing(browser, served, tmp_path, *PHONE, locale) as seen:
        page = seen.page
        page.check("input[value=night-snacks]")
        seen.send("我晚上总是吃零食")
        assert page.is_visible("#starters")
        seen.send("我不想活了", wait=False)
        page.wait_for_selector(".found")
        assert page.is_visible(".found a[href='tel:12356']")
        assert page.is_hidden(".found details.far section")
        assert page.is_hidden("#starters")
        heading = page.locator(".found h2").bounding_box()
        header = page.locator(".top").bounding_box()
        assert header["y"] + header["height"] <= heading["y"] < PHONE[1], "the answer's title is in sight"


def test_nobody_is_asked_for_a_vote_under_an_answer_to_danger(browser: Any, served: Served, tmp_path: Path) -> None:
    with browsing(browser, served, tmp_path, *PHONE, "en") as seen:
        page = seen.page
        page.check("input[value=blind]")
        for _ in range(VOTE_ROUNDS):
            seen.send("我想少玩手机")
        assert page.is_visible("#vote")
        seen.send("我不想活了", wait=False)
        page.wait_for_selector(".found")
        assert page.is_hidden("#vote")
        seen.send("我想少玩手机")
        assert page.is_visible("#vote")


def test_every_card_has_its_english() -> None:
    for card in cards("zh").values():
        for text in (card.behavior, card.manifestation, card.reason, *card.starters):
            assert text.en
            assert text.en.isascii()
            assert text.zh


def test_english_for_chinese_models_is_told(browser: Any, served: Served, tmp_path: Path) -> None:
    with browsing(browser, served, tmp_path, 1280, 860, "en") as seen:
        seen.page.fill("#say", "I cannot sleep")
        assert "tuned on Chinese" in seen.page.inner_text("#english")
        seen.page.fill("#say", "我睡不好 OK OK")
        assert not seen.page.is_visible("#english")


def test_who_reads_english_is_told_that_replies_are_chinese(browser: Any, served: Served, tmp_path: Path) -> None:
    untranslated = "The models read and write Chinese, and nothing here translates their replies."
    with browsing(browser, served, tmp_path, *PHONE, "en") as seen:
        assert untranslated in seen.page.inner_text(".lead")
        seen.send("我睡不好")
        assert seen.page.inner_text("#untranslated").startswith(untranslated)
        assert seen.page.get_attribute(".reply .words", "lang") == "zh-CN"
    with browsing(browser, served, tmp_path, *PHONE, "zh-CN") as seen:
        assert seen.page.locator("#untranslated").count() == 0


def test_a_study_in_english_says_nothing_of_chinese(served: Served, tmp_path: Path) -> None:
    study, votes = load(ROOT / "mini-en" / "params.yaml"), Votes(tmp_path / "votes.jsonl")
    chat = Chat(Counselors(served.behind), manner(study), votes, cards(study.language), Text("", ""), study.language)

    async def page() -> str:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(create(chat)), base_url="http://127.0.0.1") as client:
            return str((await client.get("/", headers={"Accept-Language": "en"})).text)

    with ThreadPoolExecutor(1) as thread:  # the browser of other tests has an event loop in this one
        html = thread.submit(asyncio.run, page()).result()
    votes.close()
    assert "Chinese" not in html.partition("<main")[2].partition("popover>")[0]


def test_enter_while_a_reply_comes_is_kept_for_after(browser: Any, served: Served, tmp_path: Path) -> None:
    with browsing(browser, served, tmp_path, 1280, 860, "en") as seen:
        page = seen.page
        page.check("input[value=tuned]")
        seen.send("#slow 说：" + "听起来你这一周过得很累，我们慢慢说。" * 3, wait=False)  # it comes for some 11 s
        page.wait_for_selector(".thinking:has-text('thinking, 1 s')")
        page.fill("#say", "说：第二句的回应")
        page.press("#say", "Enter")
        assert page.inner_text("#kept-text") == "说：第二句的回应"
        page.click("#kept-cancel")
        assert page.input_value("#say") == "说：第二句的回应"
        page.press("#say", "Enter")
        page.fill("#say", "还在写")
        page.wait_for_selector("#rounds > li:nth-child(2) .reply:not(.coming)", timeout=60_000)
        assert seen.last() == "第二句的回应"
        assert page.input_value("#say") == "还在写"
        assert not page.is_visible("#kept")


def test_a_new_talk_asks_first(browser: Any, served: Served, tmp_path: Path) -> None:
    with browsing(browser, served, tmp_path, 1280, 860, "en") as seen:
        seen.send("说：好")
        seen.page.click("#new")
        seen.page.keyboard.press("Enter")  # the button in focus goes on with the talk
        assert seen.page.is_visible("#talk")
        seen.page.click("#new")
        seen.page.click("#end button[value=end]")
        seen.page.wait_for_selector("#setup")


def test_whoever_reads_above_can_jump_to_the_latest(browser: Any, served: Served, tmp_path: Path) -> None:
    with browsing(browser, served, tmp_path, *PHONE, "en") as seen:
        seen.send("说：" + "一句长长的话，说了很久。" * 60)
        assert not seen.page.is_visible("#latest")
        seen.page.evaluate("scrollTo(0, 0)")
        seen.page.click("#latest")
        seen.page.wait_for_selector("#latest", state="hidden")


def test_codes_stand_under_each_reply_with_what_they_are_worth(browser: Any, served: Served, tmp_path: Path) -> None:
    with browsing(browser, served, tmp_path, 1280, 860, "en") as seen:
        page = seen.page
        seen.send("我晚上总是吃零食")
        base, tuned = (page.locator(f".reply:nth-child({side}) .chip").all_inner_texts() for side in (1, 2))
        assert base != tuned
        assert "Asking questions" in tuned
        page.locator(".chip[data-code=Q]").last.click()
        assert "κ = 0.80 [0.75, 0.85]" in page.inner_text("#code-Q")
        assert page.locator(".chip.measured[data-code=Q]").count() == page.locator(".chip[data-code=Q]").count()
        page.keyboard.press("Escape")
        page.wait_for_selector("#code-Q", state="hidden")
        assert "reflections per question" in page.inner_text("#tally-line")
        page.click("#tally summary")
        assert page.locator("#tally tr[data-count=Q] td:visible").all_inner_texts() == ["0", "1"]
        assert page.locator("#tally tr[data-score=RQ] td").last.inner_text().split() == ["1", "fair"]
        page.click("#tally tr[data-score=RQ] button")
        assert "0.50 is chance" in page.inner_text("#code-RQ")
        page.keyboard.press("Escape")
        seen.send("说：您应该马上戒酒。您很努力，这很不容易。")
        marks = {chip.get_attribute("data-code"): chip.get_attribute("class").split() for chip in page.locator(".chip").all()}
        assert marks["AF"] == ["chip"], "not measured, and not against MI"
        assert "against" in marks["PERS"]
        seen.send("还有呢")
        assert page.locator("#tally tr[data-count=Q] td:visible").all_inner_texts()[1] == "2"


@pytest.mark.parametrize("locale", ["en", "zh-CN"])
def test_what_a_finger_hits_is_large_enough(browser: Any, served: Served, tmp_path: Path, locale: str) -> None:
    small = """() => [...document.querySelectorAll("button, select, summary, textarea, .choice, .tick, nav a, a.number, .now a")]
        .filter((one) => one.checkVisibility()).map((one) => [one.outerHTML.slice(0, 80), one.getBoundingClientRect()])
        .filter(([, box]) => box.height && (box.height < 44 || box.width < 44))
        .map(([html, box]) => `${box.width} × ${box.height}: ${html}`)"""
    with browsing(browser, served, tmp_path, *PHONE, locale) as seen:
        seen.page.check("input[value=night-snacks]")
        assert "\n".join(seen.page.evaluate(small)) == ""
        seen.send("我晚上总是吃零食")
        seen.page.click("#tally summary")
        assert "\n".join(seen.page.evaluate(small)) == ""
        assert seen.page.evaluate("document.documentElement.scrollWidth") == PHONE[0]


@pytest.mark.parametrize(("width", "height"), [(390, 844), (844, 390), (667, 375), (820, 1180)])
def test_the_field_and_the_help_line_are_in_reach_wherever_one_reads(
    browser: Any, served: Served, tmp_path: Path, width: int, height: int
) -> None:
    with browsing(browser, served, tmp_path, width, height, "en") as seen:
        for at in (0, 0.5, 1):
            seen.page.evaluate("(at) => scrollTo(0, at * document.documentElement.scrollHeight)", at)
            field, line = (seen.page.locator(one).bounding_box() for one in ("#say", ".always .now"))
            assert 0 < field["y"] + field["height"] <= height
            assert line["y"] >= 0
            assert line["y"] + line["height"] < field["y"]
        for number in seen.page.locator(".always .now a").all():
            assert (place := number.bounding_box())["x"] + place["width"] <= width


@pytest.mark.parametrize(("width", "height"), [PHONE, (844, 390)])
def test_a_complete_reply_stays_in_sight_above_what_follows_it(
    browser: Any, served: Served, tmp_path: Path, width: int, height: int
) -> None:
    with browsing(browser, served, tmp_path, width, height, "en") as seen:
        seen.page.check("input[value=tuned]")
        seen.send("我晚上总是吃零食")
        top, reply, field = (seen.page.locator(one).bounding_box() for one in (".top", ".reply .words", ".field"))
        assert top["y"] + top["height"] <= reply["y"]
        assert reply["y"] + reply["height"] <= field["y"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_can_be_used_without_seeing_it(browser: Any, served: Served, tmp_path: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed").Axe()
    with browsing(browser, served, tmp_path, 1280, 860, "en", scheme) as seen:
        seen.page.check("input[value=night-snacks]")
        assert faults(axe, seen.page) == []
        seen.send("我晚上总是吃零食")
        seen.page.click("#tally summary")
        assert faults(axe, seen.page) == []


def faults(axe: Any, page: Any) -> list[str]:
    """What axe complains of, with the element."""
    found = axe.run(page).response["violations"]
    return [f"{one['id']}: {node['html'][:100]}" for one in found for node in one["nodes"]]


# ---- taking a talk away, and votes


def test_a_talk_is_taken_away_as_text(served: Served) -> None:
    with served.client(**{"Accept-Language": "en"}) as client:
        talk = begin(client, "beside")
        assert client.get(f"/talks/{talk}/text").status_code == 409
        replies = say(client, talk, "我晚上总是吃零食")
        client.post(f"/talks/{talk}/messages", json={"text": "我不想活了"})
        answer = client.get(f"/talks/{talk}/text")
        assert answer.headers["content-disposition"] == f'attachment; filename="tiny.{talk}.txt"'
        lines = answer.text.splitlines()
        assert lines[0] == "tiny, Side by side"
        assert load(ROOT / "mini" / "params.yaml").report.notice in lines
        assert "You: 我晚上总是吃零食" in lines
        assert f"Base: {final(replies, 0)['text']}" in lines
        assert f"Tuned: {final(replies, 1)['text']}" in lines
        assert any(re.fullmatch(r" +\[.*\bAsking questions\b.*\]", line) for line in lines)
        assert lines[-1].startswith("In brackets: MI codes"), "what the brackets are"
        assert "不想活" not in answer.text


def test_half_a_reply_has_no_codes_and_the_export_says_that_it_is_half(served: Served) -> None:
    with served.client(**{"Accept-Language": "en"}) as client:
        talk = begin(client)
        half = final(say(client, talk, "#cut 说：您觉得少喝一点会给您带来什么？听起来您很累。"))
        assert half["text"]
        assert half["codes"] == []
        lines = client.get(f"/talks/{talk}/text").text.splitlines()
        assert lines[lines.index(f"Counselor: {half['text']}") + 1] == "    [The reply was interrupted.]"
        assert not any(line.startswith("In brackets") for line in lines)


# ---- codes


def test_counts_and_scores_follow_the_codebook() -> None:
    replies = [(Behavior.QUESTION, Behavior.COMPLEX), (Behavior.SIMPLE, Behavior.PERSUADE), ()]
    made = codes.tally(replies)
    assert {code: number for code, number in made["counts"].items() if number} == {"Q": 1, "SR": 1, "CR": 1, "PERS": 1}
    assert made["scores"]["RQ"] == {"value": 2, "rating": "good"}
    assert made["scores"]["CRR"] == {"value": 0.5, "rating": "good"}
    assert made["scores"]["MINA"] == {"value": 1, "rating": None}
    assert codes.tally([])["scores"]["RQ"] == {"value": None, "rating": None}
    for score in codes.SCORES:
        assert codes.validity()[score.code].kind == "auc"


def test_a_grade_that_tells_no_more_than_chance_says_so(
    browser: Any, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert codes.graded_by_chance()
    with browsing(browser, served, tmp_path, 1280, 860, "en") as seen:
        seen.send("我晚上总是吃零食")
        seen.page.click("#tally summary")
        assert "no better than chance" in seen.page.inner_text("#tally")
    sure = {code: codes.Validity("auc", 0.8, 0.6, 0.9) for code in ("RQ", "CRR")}
    monkeypatch.setattr(codes, "validity", lambda: sure)
    assert not codes.graded_by_chance()


# ---- experiments


def test_an_experiment_assigns_arms_by_seed_and_keeps_what_was_agreed_and_said(trial: Served) -> None:
    read = experiment.read(trial.votes.parent.parent / "experiment.yaml")
    assert sorted(read.assignment.values()) == ["base", "base", "tuned", "tuned"]
    kept = trial.votes.with_suffix(".experiment.jsonl")
    with trial.client() as client:
        for body, status in (
            ({"model": "tiny", "way": "base"}, 403),
            ({"participant": "p99", "agreed": True}, 403),
            ({"participant": "p01"}, 422),
            ({"participant": "p01", "agreed": False}, 422),
        ):
            assert client.post("/talks", json=body).status_code == status
        begun = client.post("/talks", json={"participant": "p01", "agreed": True}).json()
        assert (begun["sides"], begun["way"]) == ([None], None)
        found = say(client, begun["id"], "我晚上总是吃零食")
        assert "codes" not in final(found)
        client.post(f"/talks/{begun['id']}/messages", json={"text": "我不想活了"})
        assert client.get(f"/talks/{begun['id']}/dialogs/0").status_code == 409, "the arm stays hidden"
    lines = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    arm = read.assignment["p01"]
    assert [(line["kind"], line["participant"]) for line in lines] == [("consent", "p01"), ("round", "p01")]
    assert (lines[0]["arm"], lines[1]["replies"][0]["arm"]) == (arm, arm)
    assert (lines[1]["client"], lines[1]["replies"][0]["text"]) == ("我晚上总是吃零食", final(found)["text"])


def test_the_experiment_of_the_documentation_is_read(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "safety.md").read_text(encoding="utf-8")
    path = tmp_path / "experiment.yaml"
    path.write_text(page.partition("is_read\n")[2].partition("```")[0], encoding="utf-8")
    read = experiment.read(path)
    assert set(read.assignment.values()) == set(read.arms) == {"base", "tuned"}


def test_without_an_experiment_nobody_is_a_participant(served: Served) -> None:
    with served.client() as client:
        assert client.post("/talks", json={"model": "tiny", "way": "base", "participant": "p01"}).status_code == 422
        assert 'id="participant"' not in client.get("/").text
    assert not served.votes.with_suffix(".experiment.jsonl").exists()


def test_a_participant_agrees_first(browser: Any, trial: Served, tmp_path: Path) -> None:
    with browsing(browser, trial, tmp_path, *PHONE, "en") as seen:
        page = seen.page
        assert page.locator(".consent > p").all_inner_texts()[:2] == [
            "What you write is kept for this study.", "You may stop at any time.",
        ]  # fmt: skip
        assert "Text is kept for a study" in page.inner_text(".always")
        assert page.locator("input[name=way], select").count() == 0
        seen.send("我睡不好", wait=False)
        page.wait_for_selector("#problem:not([hidden])")
        assert page.input_value("#say") == "我睡不好"
        page.fill("#participant", "p02")
        page.check("#agreed")
        seen.send("我睡不好")
        assert page.inner_text("#which") == "tiny, study"
        assert page.locator(".codes, #files a").count() == 0


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("[base, tuned]", "[best]", "arms"),
        ("p02", "p01", "one twice"),
        ("seed: 7\n", "", "seed"),
        ("  en: |", "  fr: |", "consent"),
        ("p02", "p 2", "participants"),
    ],
)
def test_an_experiment_that_is_not_as_it_should_be_is_named(tmp_path: Path, old: str, new: str, problem: str) -> None:
    assert old in EXPERIMENT
    path = tmp_path / "experiment.yaml"
    path.write_text(EXPERIMENT.replace(old, new), encoding="utf-8")
    with pytest.raises(Problem, match=problem):
        experiment.read(path)
