"""The documents that the report shows whole: in Chinese they have no English sentence, and a new one is marked as English."""

from pathlib import Path

import pytest

from mi_llm.models import licenses
from mi_llm.models.card import card, source_of
from mi_llm.report import documents
from mi_llm.study import load

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = ("records", "tokens", "labelled_tokens", "cut", "left_out", "steps", "trainable_parameters", "first_loss", "last_loss")


@pytest.mark.parametrize("params", ["params.yaml", "mini/params.yaml", "mini-en/params.yaml"])
def test_every_sentence_of_a_card_is_said_in_chinese(params: str, workspace: Path) -> None:
    study = load(ROOT / params)
    for model in study.tuned:
        text = card(study, model, source_of(study, model), dict.fromkeys(NUMBERS, 7))
        shown = documents.html(text, "zh")
        assert 'lang="en"' not in shown
        assert "7 个样本" in shown
        assert 'lang="en"' in documents.html(f"{text}\nIt was praised by nobody.\n", "zh")


def test_every_duty_of_a_license_and_every_sentence_of_the_data_sheet_is_said_in_chinese(workspace: Path) -> None:
    for licence in licenses.known().values():
        for duty in licence.duties:
            assert documents.in_chinese(" ".join(duty.split())), duty
    shown = documents.datasheet("zh")
    assert 'lang="en"' not in shown
    assert "60 段对话，456 轮" in shown
