"""The report's tables in a browser: columns of numbers, columns of the paper, and what stays while scrolling."""

from typing import Any

import pandas as pd
import pytest

from mi_llm.frame.pages import SUFFIXES
from mi_llm.report.page import in_words
from mi_llm.study import Study

OF_TABLE_6 = "document.querySelector('#table-6 ~ .wide')"


def test_columns_of_numbers_are_known_in_both_languages_and_the_papers_column_is_grouped_with_ours() -> None:
    table = pd.DataFrame(
        {"Arm": ["base"], "Rounds": ["9.50 (1.20)"], "Rounds, paper": ["—"], "n": [3], "P": ["<0.001"], "Note": ["10 pairs"]}
    ).set_index("Arm")
    for lang in SUFFIXES:
        shown = in_words(table, lang)
        assert shown["numbers"] == [False, True, True, True, True, False]
        assert [span for _, span, _ in shown["groups"]] == [1, 2, 1, 1, 1]


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
