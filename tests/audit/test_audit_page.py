"""The audit's page: its pieces, and in a real browser what people look at: squares, pictures, views by address, paper."""

import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from looks import BROKEN, WIDTHS, problems, serious_faults
from playwright.sync_api import expect
from repository import ROOT

from mi_llm.audit import audit as stage
from mi_llm.audit.chinese import chinese, content
from mi_llm.audit.evidence import Evidence
from mi_llm.audit.findings import findings
from mi_llm.audit.page import GROUPS, group_of, linked, pages, rows
from mi_llm.audit.pictures import SIDE, number, picture
from mi_llm.audit.verdict import NEGATIVE, VERDICTS, Result
from mi_llm.paper.claims import claims
from mi_llm.study import load


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    """The verdicts of the paper's arithmetic alone, without any public file."""
    return stage.check(claims(), Evidence(load(ROOT / "mini/params.yaml")))


@pytest.fixture(scope="module")
def folder(results: dict[str, Result], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page in both languages."""
    study, paper = load(ROOT / "mini/params.yaml"), claims()
    evidence, table = Evidence(study), stage.rows(claims(), results)
    tables = stage.supporting(paper, evidence) | {"tally": stage.tally(table), "causes": stage.causes(table)}
    numbers: dict[str, int] = {verdict: int((table["verdict"] == verdict).sum()) for verdict in VERDICTS}
    numbers |= {"claims": len(table), "statements": 16, "causes": len(tables["causes"])}
    headlines = findings(paper, results, evidence, tables)
    made = pages(study, paper, results, headlines, tables=tables, counts=numbers, methods=stage.METHODS)
    folder = tmp_path_factory.mktemp("run") / "audit"
    folder.mkdir()
    for lang, text in made.items():
        (folder / ("index.html" if lang == "en" else f"index.{lang}.html")).write_text(text, encoding="utf-8")
    return folder


def test_every_claim_has_a_group_and_the_papers_tables_have_their_own() -> None:
    groups = [group_of(claim) for claim in claims().values()]
    assert set(groups) == set(GROUPS)
    assert groups.count("T6") == 80
    assert groups.count("words") == 15  # the sixteenth statement is on ROUGE, among the text's


def test_every_note_and_place_has_a_chinese_reading_with_the_same_numbers(results: dict[str, Result]) -> None:
    for row in rows(claims(), results, "zh"):
        note = row.result.note
        if re.search("[a-z]{2}", note):
            assert row.note != note, note
        assert sorted(re.findall(r"\d+", row.note)) == sorted(re.findall(r"\d+", note))
        assert row.note == note or not re.search(r"\b(?:was|were|cannot|have|that|if)\b", row.note), row.note
        own = re.search("[\u4e00-\u9fff]", row.place.rsplit(" / ", 1)[0])
        assert own, row.place


def test_what_a_method_does_is_said_in_chinese_with_the_same_numbers(folder: Path) -> None:
    shown = [(folder / name).read_text(encoding="utf-8").split('id="methods"')[1] for name in ("index.html", "index.zh.html")]
    english, own = (re.findall(r"<dd>(.*?)</dd>", unescape(page), re.DOTALL) for page in shown)
    assert len(english) == len(own) == len(stage.METHODS)
    for words, said in zip(english, own, strict=True):
        assert re.search("[\u4e00-\u9fff]", said), said
        assert set(re.findall(r"\d{2,}", words)) <= set(re.findall(r"\d{2,}", said)), said
        assert "`" not in words + said


def test_a_note_is_read_sentence_by_sentence_and_an_unknown_one_stays() -> None:
    assert (
        chinese("half of CCT + SST. The SD must be between 0.10 and 0.90.")
        == "CCT 与 SST 之和的一半。标准差必须在 0.10 到 0.90 之间。"
    )
    unknown = "The codes were not released. Nobody knows why."
    assert chinese(unknown) == unknown
    listed = "On the same rounds, the simple rules constant and previous_reply score higher."
    assert chinese(listed) == "在同样的轮次上，得分更高的简单规则：固定的一句、上一次的回应。"


def test_every_gap_of_a_translation_is_a_gap_of_its_sentence() -> None:
    for pattern, translation in content()[1]:
        assert set(re.findall(r"\{(\w+)\}", translation)) == set(pattern.groupindex), translation


def test_addresses_and_own_files_become_links_and_nothing_else() -> None:
    shown = str(linked("See https://example.org/a?b=1&c; then <b> causes.csv, other.csv.", ["causes.csv"]))
    assert '<a href="https://example.org/a?b=1&amp;c">' in shown
    assert '<a href="causes.csv">causes.csv</a>' in shown
    assert "&lt;b&gt;" in shown
    assert "other.csv</a>" not in shown


@pytest.mark.parametrize(
    ("text", "value"), [("7.53", 7.53), ("1.0e-4", 1e-4), ("2x3", 6.0), ("2+1+3", 6.0), ("10/9/10", None), (">0.58", None)]
)
def test_numbers_are_read_as_the_paper_prints_them(text: str, value: float | None) -> None:
    assert number(text) == value


def test_a_picture_puts_equal_numbers_on_its_diagonal_and_keeps_the_order() -> None:
    paper = claims()
    same = (paper["T4-glm-rounds"], Result("reproduced", recomputed=paper["T4-glm-rounds"].reported))
    lower = (paper["T4-lla-rounds"], Result("differs", recomputed="1.0"))
    lacking = (paper["T4-bai-n"], Result("not recomputable"))
    drawn = picture([same, lower, lacking])
    assert drawn is not None
    assert drawn.points[0].x == drawn.points[0].y
    assert 0 < drawn.points[1].y < drawn.points[1].x <= SIDE
    assert len(drawn.lacking) == 1
    assert [mark for mark, _ in drawn.ticks] == sorted(mark for mark, _ in drawn.ticks)
    drawn_last = picture([lower, same])
    assert drawn_last is not None
    assert drawn_last.points[-1].result.verdict in NEGATIVE, "nothing covers them"
    assert picture([lacking]) is None
    assert picture([(paper["X-40"], Result("reproduced", recomputed="40"))]) is not None  # one number alone has a scale too


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_page_fits_every_width_and_answers_on_its_first_screen(folder: Path, browser: Any, lang: str) -> None:
    for width in WIDTHS:
        page = browser.new_page(viewport={"width": width, "height": 860})
        page.goto((folder / ("index.html" if lang == "en" else "index.zh.html")).as_uri())
        assert problems(page) == [], width
        assert page.locator(".tiles").bounding_box()["y"] < 860
        if width >= 1280:
            squares = page.locator(".groups").bounding_box()
            assert squares["y"] + squares["height"] < 860, width
            assert page.locator("#claims").evaluate("one => one.scrollWidth <= one.clientWidth")
        page.close()


def test_a_square_leads_to_its_claim_and_a_tile_to_its_view(folder: Path, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 860})
    page.goto((folder / "index.html").as_uri())
    assert page.locator(".squares a").count() == 212
    page.locator(".tiles .inconsistent a").click()
    assert page.url.endswith("#verdict=inconsistent")
    shown, inconsistent = page.locator("#claims tbody tr:visible"), page.locator("#claims tbody tr[data-verdict=inconsistent]")
    expect(shown).to_have_count(inconsistent.count())
    assert {row.get_attribute("data-verdict") for row in shown.all()} == {"inconsistent"}
    expect(page.locator("#filter")).to_be_in_viewport()
    page.locator('.squares a[href="#T6-EMP-Llama"]').click()
    expect(page.locator("#T6-EMP-Llama")).to_be_in_viewport()
    page.go_back()
    expect(shown).to_have_count(inconsistent.count())
    page.close()


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_causes_of_the_negative_verdicts_are_listed_with_their_claims(
    folder: Path, results: dict[str, Result], browser: Any, lang: str
) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 860})
    page.goto((folder / ("index.html" if lang == "en" else "index.zh.html")).as_uri())
    page.locator(".tiles a[href='#causes']").click()
    causes = page.locator(".causes li")
    assert page.locator(".tiles a[href='#causes'] b").inner_text() == str(causes.count())
    listed = causes.locator(".soft a").all_inner_texts()
    assert sorted(listed) == sorted(name for name, result in results.items() if result.verdict in NEGATIVE)
    first = causes.locator("> a").first
    title, target = first.inner_text(), first.get_attribute("href")
    assert page.locator(f"{target} h3").inner_text().endswith(title)
    page.close()


def test_a_view_is_its_address(folder: Path, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 860})
    page.goto((folder / "index.html").as_uri() + f"#table=T6&verdict={','.join(NEGATIVE)}&words=baichuan&sort=-reported")
    shown = page.locator("#claims tbody tr:visible")
    rows_shown = shown.evaluate_all(
        "rows => rows.map(row => [row.dataset.table, row.dataset.verdict, Number(row.dataset.reported)])"
    )
    assert rows_shown
    assert all(table == "T6" and verdict in NEGATIVE for table, verdict, _ in rows_shown)
    values = [value for _, _, value in rows_shown]
    assert values == sorted(values, reverse=True)
    assert page.input_value("#filter [name=words]") == "baichuan"
    assert page.input_value("#filter [name=table]") == "T6"
    page.select_option("#filter [name=table]", "")
    assert "table=" not in page.url
    assert "words=baichuan" in page.url
    page.reload()
    assert page.input_value("#filter [name=words]") == "baichuan"
    page.close()


def test_the_address_of_a_row_is_copied_and_the_view_stays(folder: Path, browser: Any) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 860}, permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto((folder / "index.html").as_uri() + "#table=T6")
    link = page.locator("#claims tbody tr:visible .copy").nth(2)
    link.click()
    expect(link).to_have_class("copy copied")
    expect(page.locator("#count")).to_have_text("address copied")
    assert page.url.endswith("#table=T6")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.endswith("/index.html" + link.get_attribute("href"))
    page.goto(copied)
    assert page.locator("tr:target:visible").count() == 1
    page.evaluate("location.hash = '#table=T6'")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: { writeText: () => Promise.reject() } })")
    page.locator("#claims tbody tr:visible .copy").nth(2).click()
    expect(page.locator("tr:target")).to_be_visible()  # what cannot be copied is gone to
    context.close()


def test_heads_sort_and_say_so(folder: Path, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 860})
    page.goto((folder / "index.html").as_uri())
    head = page.locator("#claims th[data-sort=recomputed]")
    for order, sign in (("ascending", 1), ("descending", -1)):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == order
        numbers = page.locator("#claims tbody tr").evaluate_all("rows => rows.map(row => row.dataset.recomputed)")
        known = [sign * float(text) for text in numbers if text]
        assert known == sorted(known)
        assert "" not in numbers[: len(known)]  # rows without a number come last
    page.evaluate("document.querySelector('#claims').scrollIntoView()")
    page.mouse.wheel(0, 3000)
    assert page.locator("#claims thead th").first.bounding_box()["y"] >= 0
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_checker_finds_no_serious_fault_in_either_theme(folder: Path, browser: Any, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed").Axe()
    page = browser.new_page(viewport={"width": 1280, "height": 860}, color_scheme=scheme)
    page.goto((folder / "index.html").as_uri() + "#table=T3")
    assert serious_faults(page, axe) == []
    page.close()


def test_paper_breaks_no_word(folder: Path, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1010, "height": 700})  # A4, turned, between its margins
    page.goto((folder / "index.html").as_uri() + "#table=T1")
    page.emulate_media(media="print")
    assert page.evaluate(BROKEN) == []
    assert page.locator("#filter").is_hidden()
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
    page.close()
