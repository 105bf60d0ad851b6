"""Scores and their uncertainty, against literal values and against the formulas."""

import pytest

from mi_llm.score.statistics import DialogBootstrap
from mi_llm.score.text import corpus_scores, sample_scores


@pytest.mark.parametrize(
    ("reply", "reference", "expected"),
    [
        ("我想戒烟", "我想戒烟", {"bleu_4": 100.0, "rouge_1": 100.0, "rouge_2": 100.0, "rouge_l": 100.0}),
        ("", "我想戒烟", {"bleu_4": 0.0, "rouge_1": 0.0, "rouge_2": 0.0, "rouge_l": 0.0}),
        ("我想戒烟", "", {"bleu_4": 0.0, "rouge_1": 0.0, "rouge_2": 0.0, "rouge_l": 0.0}),
        (" ", "我想戒烟", {"rouge_1": 0.0, "rouge_l": 0.0}),
        ("今天天气好", "戒烟很难", {"rouge_1": 0.0, "rouge_2": 0.0, "rouge_l": 0.0}),
    ],
)
def test_scores_of_simple_pairs(reply: str, reference: str, expected: dict[str, float]) -> None:
    found = sample_scores(reply, reference)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-3)


def test_a_worked_example() -> None:
    # jieba cuts 医生 让 我 戒烟 and 老师 让 我 戒烟: 3 of 4 words agree, 2 of 3 pairs, and a common subsequence of 3.
    # Characters: 4 of 6, 3 of 5 pairs, 2 of 4 triples, 1 of 3 quadruples.
    found = sample_scores("医生让我戒烟", "老师让我戒烟")
    assert found["rouge_1"] == pytest.approx(75.0, abs=1e-3)
    assert found["rouge_2"] == pytest.approx(200 / 3, abs=1e-3)
    assert found["rouge_l"] == pytest.approx(75.0, abs=1e-3)
    assert found["bleu_4"] == pytest.approx(100 * (4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25, abs=1e-3)


def test_no_common_quadruple_is_smoothed() -> None:
    # 0 of 2 quadruples agree: NLTK's method 3 takes 1 / (2¹ · 2) in its place
    found = sample_scores("我很想戒烟", "我不想戒烟")
    assert found["bleu_4"] == pytest.approx(100 * (4 / 5 * 2 / 4 * 1 / 3 * 1 / 4) ** 0.25, abs=1e-3)


def test_every_other_score_carries_its_signature() -> None:
    found = corpus_scores(["我想戒烟"], ["我想戒烟。"])
    assert set(found) == {"sacrebleu_zh", "rouge_score_1", "rouge_score_2", "rouge_score_l"}
    assert "tok:zh" in found["sacrebleu_zh"].signature
    assert found["rouge_score_1"].value == pytest.approx(100 * 2 * 4 / 9)


def test_the_interval_is_over_dialogs_not_rounds() -> None:
    values = [0.0] * 50 + [10.0] * 50
    clustered = DialogBootstrap(["a"] * 50 + ["b"] * 50, 4000, 0.95, seed=1).estimate(values)
    independent = DialogBootstrap([str(place) for place in range(100)], 4000, 0.95, seed=1).estimate(values)
    assert (clustered.mean, clustered.lo, clustered.hi) == (5.0, 0.0, 10.0)
    assert independent.lo == pytest.approx(4.0, abs=0.2)
    assert independent.hi == pytest.approx(6.0, abs=0.2)


def test_the_same_seed_gives_the_same_interval() -> None:
    dialogs, values = [str(place // 3) for place in range(60)], [place**0.5 for place in range(60)]
    first = DialogBootstrap(dialogs, 500, 0.95, seed=7).estimate(values)
    assert first == DialogBootstrap(dialogs, 500, 0.95, seed=7).estimate(values)
    assert first != DialogBootstrap(dialogs, 500, 0.95, seed=8).estimate(values)
