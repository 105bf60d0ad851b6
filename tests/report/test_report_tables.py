"""The report's tables in a browser: columns of numbers, columns of the paper, and what stays while scrolling."""

import re
from typing import Any

import pandas as pd
import pytest

from mi_llm.frame.pages import SUFFIXES
from mi_llm.report.chinese import chinese
from mi_llm.report.page import in_words
from mi_llm.study import Study

SPLIT_WORDS = """[...document.querySelectorAll('main .wide :is(th, td)')].flatMap(cell => {
  const walk = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), split = [];
  while (walk.nextNode()) for (const word of walk.currentNode.data.matchAll(/[A-Za-z]+/g)) {
    const range = document.createRange();
    range.setStart(walk.currentNode, word.index);
    range.setEnd(walk.currentNode, word.index + word[0].length);
    if (new Set([...range.getClientRects()].map(box => Math.round(box.top))).size > 1) split.push(word[0]);
  }
  return split;
})"""
CLOSED = "[...document.querySelectorAll('details table')].filter(table => !table.getBoundingClientRect().height).length"
WIDE_PAGES = "[...document.querySelectorAll('.wide')].filter(box => getComputedStyle(box).page === 'wide').length"
OF_TABLE_6 = "document.querySelector('#table-6 ~ .wide')"


def test_columns_of_numbers_are_known_in_both_languages_and_the_papers_column_is_grouped_with_ours() -> None:
    table = pd.DataFrame(
        {"Arm": ["base"], "Rounds": ["9.50 (1.20)"], "Rounds, paper": ["—"], "n": [3], "P": ["<0.001"], "Note": ["10 pairs"]}
    ).set_index("Arm")
    for lang in SUFFIXES:
        shown = in_words(table, lang)
        assert shown["numbers"] == [False, True, True, True, True, False]
        assert [span for _, span, _ in shown["groups"]] == [1, 2, 1, 1, 1]


def test_a_place_in_a_file_is_said_in_chinese() -> None:
    assert chinese("efaqa.utf8, line 1, chat 3") == "efaqa.utf8，第 1 行，第 3 段聊天"


@pytest.mark.parametrize("end", SUFFIXES.values())
def test_table_6_has_grouped_heads_numbers_to_the_right_and_names_that_stay(scored: Study, browser: Any, end: str) -> None:
    page = browser.new_page(viewport={"width": 500, "height": 800})
    page.goto((scored.folder / f"report/index{end}.html").resolve().as_uri())
    assert page.evaluate(f"{OF_TABLE_6}.querySelectorAll('th[scope=colgroup]').length") == len(scored.tuned) + 1
    cells = (
        f"[...{OF_TABLE_6}.querySelectorAll('td:not(:last-child)')].filter(cell => getComputedStyle(cell).textAlign !== 'right')"
    )
    assert page.evaluate(f"{cells}.map(cell => cell.textContent)") == []  # the last column is the verdict
    left = f"{OF_TABLE_6}.querySelector('tbody th').getBoundingClientRect().left"
    before = page.evaluate(left)
    page.evaluate(f"{OF_TABLE_6}.scrollLeft = 200")
    assert abs(page.evaluate(left) - before) < 12
    assert page.evaluate(f"{OF_TABLE_6}.querySelector('td').getBoundingClientRect().left") < before
    page.close()


@pytest.mark.parametrize("end", SUFFIXES.values())
def test_print_breaks_no_word_opens_the_folds_and_turns_pages_of_wide_tables(scored: Study, browser: Any, end: str) -> None:
    page = browser.new_page(viewport={"width": 690, "height": 1000})  # A4 between its margins
    page.emulate_media(media="print")
    page.goto((scored.folder / f"report/index{end}.html").resolve().as_uri())
    assert page.evaluate(SPLIT_WORDS) == []
    assert page.evaluate(CLOSED) == 0
    assert page.evaluate(WIDE_PAGES) == page.locator("table.many").count() > 0
    sheets = re.findall(rb"/MediaBox *\[0 0 ([\d.]+) ([\d.]+)\]", page.pdf(format="A4"))
    assert {float(width) > float(height) for width, height in sheets} == {True, False}
    page.close()
