"""The report's and the audit's pages in a real browser: nothing clipped, nothing asked for, no serious fault for a checker."""

import re
import shutil
import subprocess
from typing import Any

import pytest

from mi_llm.report.page import PAGES
from mi_llm.study import Study

SITE = [f"{page}{end}.html" for page in (*(f"report/{name}" for name in PAGES), "audit/index") for end in ("", ".zh")]
OPEN = "document.querySelectorAll('details').forEach(one => { one.open = true })"
STICKING_OUT = """[...document.querySelectorAll('body *')].filter(one => !one.closest('.wide, .skip')
  && one.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(one => one.outerHTML.slice(0, 120))"""
UNBOXED = """[...document.querySelectorAll('table, figure svg')]
  .filter(one => !one.closest('.wide, .pictures') && !one.matches('#claims, .groups')).length"""
ALIKE = """(([one, other]) => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  canvas.font = `40px ${getComputedStyle(document.body).fontFamily}`;
  const drawn = (letter) => {
    canvas.clearRect(0, 0, 60, 60);
    canvas.fillText(letter, 5, 45);
    return canvas.getImageData(0, 0, 60, 60).data.join();
  };
  return drawn(one) === drawn(other);
})"""

CUT_OFF = """[...document.querySelectorAll('figure svg text')].filter(text => {
    const [words, figure] = [text, text.ownerSVGElement].map(one => one.getBoundingClientRect());
    return words.left < figure.left || words.right > figure.right;
  }).map(text => text.textContent)"""
HIDDEN_CELLS = """[...document.querySelectorAll('.cards td')].filter(cell => {
    const [seen, box] = [cell, cell.closest('.wide')].map(one => one.getBoundingClientRect());
    return cell.scrollWidth > cell.clientWidth || seen.right > box.right;
  }).map(cell => cell.textContent)"""
NARROW_CELLS = """[...document.querySelectorAll('tbody :is(th, td)')].filter(cell => {
    const style = getComputedStyle(cell);
    const room = cell.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    return /[\u4e00-\u9fff]{5}/.test(cell.textContent) && room < 3.5 * parseFloat(style.fontSize);
  }).map(cell => cell.textContent)"""
FEWER = """document.querySelectorAll('#rounds article:nth-child(n+4), #claims tbody tr:nth-child(n+30)')
  .forEach(one => one.remove())"""
TOO_WIDE = """[...document.querySelectorAll('main > .wide table, figure svg')]
  .filter(one => one.getBoundingClientRect().right > innerWidth + 1)
  .map(one => one.closest('.wide').getAttribute('aria-label'))"""
PAIRS = """[...document.querySelectorAll('.models > section, .replies > div')].slice(0, 6).map(model => {
  const [base, tuned] = ['.base', '.tuned'].map(arm => model.querySelector(arm).getBoundingClientRect());
  const level = base.top === tuned.top && base.bottom === tuned.bottom;
  return {beside: level && base.right < tuned.left, over: base.bottom < tuned.top};
})"""
GAINS = """[...document.querySelectorAll('#rounds article')]
  .map(one => one.dataset.gains.split(' ').map(Number).filter((_, at) => at % 4 === 0))"""


def address(study: Study, name: str) -> str:
    return (study.folder / name).resolve().as_uri()


@pytest.mark.parametrize("width", [1200, 390])
def test_nothing_is_clipped_and_nothing_is_asked_for(scored: Study, browser: Any, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 860})
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda told: complaints.append(told.text) if told.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    for name in SITE:
        page.goto(address(scored, name))
        page.evaluate(OPEN)
        assert page.evaluate(STICKING_OUT) == [], name
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert page.evaluate(UNBOXED) == 0, name
    assert asked == [address(scored, name) for name in SITE]
    assert complaints == []
    page.close()


@pytest.mark.slow
def test_the_checker_finds_no_serious_fault(scored: Study, browser: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed").Axe()
    page = browser.new_page(viewport={"width": 390, "height": 860})
    for name in SITE:
        page.goto(address(scored, name))
        page.evaluate(OPEN)
        page.evaluate(FEWER)  # of what is alike
        found = axe.run(page).response["violations"]
        grave = [(one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in ("serious", "critical")]
        assert grave == [], name
    page.set_content("<html lang='en'><title>x</title><main><h1>x</h1><img src='data:,'></main></html>")
    assert "image-alt" in {one["id"] for one in axe.run(page).response["violations"]}  # the checker sees what is wrong
    page.close()


def test_chinese_letters_are_no_boxes(scored: Study, browser: Any) -> None:
    if not shutil.which("fc-list") or not subprocess.run(["fc-list", ":lang=zh"], capture_output=True, check=False).stdout:
        pytest.skip("no font with Chinese letters on this machine")
    page = browser.new_page()
    page.goto(address(scored, "report/index.zh.html"))
    assert page.evaluate(f"{ALIKE}(['\\ue123', '\\ue456'])")  # letters that no font has are all the same box
    assert not page.evaluate(f"{ALIKE}(['访', '谈'])")
    assert not page.evaluate(f"{ALIKE}(['动', '\\ue123'])")
    page.close()


def test_figures_are_light_on_dark_in_the_dark(scored: Study, browser: Any) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(address(scored, "report/index.html"))
    figures = page.locator("figure > .wide svg")
    assert figures.count() == page.locator("figure svg").count() > 5
    for figure in figures.all():
        assert figure.evaluate("drawing => getComputedStyle(drawing).filter").startswith("invert(0.9)")
    ground = page.locator("figure > .wide").first.evaluate("box => getComputedStyle(box).backgroundColor")
    assert max(map(int, re.findall(r"\d+", ground))) < 60
    page.emulate_media(color_scheme="light")
    assert figures.first.evaluate("drawing => getComputedStyle(drawing).filter") == "none"
    page.close()


@pytest.mark.parametrize("width", [1200, 390])
def test_chinese_labels_stay_inside_their_figures(scored: Study, browser: Any, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 860})
    page.goto(address(scored, "report/index.zh.html"))
    assert page.locator("figure svg text:visible").count() > 100
    assert page.evaluate(CUT_OFF) == []
    page.close()


def test_figures_of_panels_are_read_on_a_phone_without_moving_them(scored: Study, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 860})
    page.goto(address(scored, "report/index.html"))
    page.evaluate(OPEN)
    wide, moved = page.locator("figure > .wide"), "box => box.scrollWidth > box.clientWidth"
    assert [box.get_attribute("aria-label")[:8] for box in wide.all() if box.evaluate(moved)] == ["Figure 1"]
    sizes = page.evaluate("[...document.querySelectorAll('.phone svg text')].map(text => text.getBoundingClientRect().height)")
    assert min(sizes) >= 8, "letters of 6.5 points and more, as they were drawn"
    assert page.locator("figure svg:visible").count() == wide.count(), "one drawing each"
    page.emulate_media(media="print")
    assert page.locator(".phone").evaluate_all("all => all.every(one => getComputedStyle(one).display === 'none')")
    page.close()


def test_words_of_tables_are_not_broken_after_every_letter(scored: Study, browser: Any) -> None:
    for width in (1280, 390):
        page = browser.new_page(viewport={"width": width, "height": 860})
        page.goto(address(scored, "report/index.zh.html"))
        page.evaluate(OPEN)
        assert page.evaluate(NARROW_CELLS) == [], width
        page.close()


def test_grades_are_seen_on_a_phone_without_moving_the_table(scored: Study, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 860})
    for name in ("report/safety.html", "report/safety.zh.html"):
        page.goto(address(scored, name))
        page.evaluate(OPEN)
        assert page.evaluate(HIDDEN_CELLS) == [], name
    page.close()


def test_it_prints_whole(scored: Study, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 690, "height": 1000})  # A4 between its margins
    page.emulate_media(media="print")
    for name in ("report/index.html", "report/index.zh.html", "report/checklist.html"):
        page.goto(address(scored, name))
        assert page.evaluate("getComputedStyle(document.querySelector('header nav')).display") == "none"
        assert page.evaluate(TOO_WIDE) == [], name
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()


@pytest.mark.parametrize(("width", "place"), [(820, "beside"), (390, "over")])
def test_a_models_base_reply_stands_beside_its_tuned_one_and_on_a_phone_over_it(
    scored: Study, browser: Any, width: int, place: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 860})
    for name in ("report/rounds.html", "report/index.html", "report/models.zh.html"):
        page.goto(address(scored, name))
        pairs = page.evaluate(PAIRS)
        assert len(pairs) >= len(scored.models), name
        assert all(pair[place] for pair in pairs), name
    page.close()


def test_rounds_are_sorted_and_filtered_in_both_languages(scored: Study, browser: Any) -> None:
    page = browser.new_page()
    for name, words in (("report/rounds.html", "121 of 121 rounds"), ("report/rounds.zh.html", "121／121 轮")):
        page.goto(address(scored, name))
        assert page.inner_text("#count") == words
        page.select_option("#order", "gain")
        means = [sum(one) for one in page.evaluate(GAINS)]
        assert means == sorted(means, reverse=True)
        page.select_option("#dialog", index=1)
        assert 0 < page.locator("#rounds article:visible").count() < 121
    page.goto(address(scored, "audit/index.zh.html"))
    page.fill("#filter [name=words]", "T6-EMP-Llama")
    assert page.locator("#claims tbody tr:visible").count() == 1
    page.close()
