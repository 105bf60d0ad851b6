"""Client language: what words alone tell of it, and what a session's codes show."""

import math
from pathlib import Path

import pytest

from mi_llm.codebook.client import ClientCoding, Talk, read_table, share_of_change, slope, table, talk_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("我打算从明天开始戒烟。", "change"),
        ("戒不了，试过好几回都没用。", "sustain"),
        ("我一天抽两包。", "neutral"),
        ("I really want to quit, for my kids.", "change"),
        ("I-I can't stop, it's too hard.", "sustain"),
        ("I'm at about a pack a day.", "neutral"),
        ("", "neutral"),
    ],
)
def test_words_for_and_against_change_are_told_apart(text: str, expected: str) -> None:
    assert talk_of(text) == expected


def test_share_and_slope_are_those_of_their_definitions() -> None:
    change, sustain, neutral = Talk.CHANGE, Talk.SUSTAIN, Talk.NEUTRAL
    rising = {2: sustain, 4: neutral, 6: change}
    assert share_of_change(rising) == 0.5
    assert slope(rising) == pytest.approx(2)  # from -1 at the beginning to 1 at the end
    assert slope({1: change, 3: change, 5: change}) == pytest.approx(0)
    assert math.isnan(share_of_change({1: neutral}))
    assert math.isnan(slope({1: sustain, 3: change}))


def test_the_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    codings = [ClientCoding("lexical", "aaaaaa", {1: Talk.CHANGE, 3: Talk.NEUTRAL})]
    table(codings).to_csv(tmp_path / "client.csv", index=False)
    assert read_table(tmp_path / "client.csv") == codings
