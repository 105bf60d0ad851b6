"""Scores and their uncertainty: against LLaMA-Factory's metric, the libraries behind it, literal values and the formulas."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import jieba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from repository import ROOT
from rouge_chinese import Rouge
from rouge_score.rouge_scorer import RougeScorer

from mi_llm.corpora import fetch, release
from mi_llm.corpora.reading import Repairs
from mi_llm.dialog import Round
from mi_llm.score import text
from mi_llm.score.baselines import baselines
from mi_llm.score.diagnostics import diagnostics, repeated_4grams
from mi_llm.score.libraries import Characters, pooled_scores, rouge_scores
from mi_llm.score.text import LLAMA_FACTORY, all_scores, common_subsequence, sample_scores
from mi_llm.statistics import DialogBootstrap, jackknife_interval, p_of_swaps

REFERENCE = ROOT / "tests" / "references" / "metric.json"
PARTS = [
    "我", "你", "戒烟", "很难", "听起来", "的", "了", "不", "想", "医生", "老师", "明天", "。", "，", "！", "？", "…", "”", "’",
    ".", "......", "?", " ", "\n", "\r\n", "\u3000", "\x85", "a", "1.5%", "BMI", "C++", "-", "_", "é", "😀", "𠀀", "鿕", "龘",
    "Ａ", "·",
]  # fmt: skip
TEXTS = st.one_of(st.lists(st.sampled_from(PARTS), max_size=40).map("".join), st.text(st.characters(codec="utf-8"), max_size=40))


def by_the_libraries(reply: str, reference: str) -> dict[str, float]:
    """What LLaMA-Factory does with jieba, rouge_chinese and NLTK."""
    reply_words, reference_words = (" ".join(jieba.cut(side)) for side in (reply, reference))
    rouge = {name: {"f": 0.0} for name in ("rouge-1", "rouge-2", "rouge-l")}
    if reply_words.split() and reference_words.split():
        rouge = Rouge().get_scores(reply_words, reference_words)[0]
    bleu = sentence_bleu([list(reference)], list(reply), smoothing_function=SmoothingFunction().method3)
    shares = (bleu, *(rouge[name]["f"] for name in ("rouge-1", "rouge-2", "rouge-l")))
    return dict(zip(LLAMA_FACTORY, (round(share * 100, 4) for share in shares), strict=True))


def test_scores_equal_llama_factorys_own() -> None:
    committed = json.loads(REFERENCE.read_text(encoding="utf-8"))
    assert committed["made_by"] == "benchmarks/scoring.py with llamafactory 0.9.5"
    texts, rows = committed["texts"], committed["scores"]
    scored = all_scores([texts[row[0]] for row in rows], [texts[row[1]] for row in rows])
    assert len(scored) > 900
    assert {max(len(texts[column]) for column in row[:2]) for row in rows} >= {0, 1, 5000}
    wrong = [(row, list(scores.values())) for row, scores in zip(rows, scored, strict=True) if list(scores.values()) != row[2:]]
    assert wrong == []


def test_scores_of_the_released_rounds_equal_the_libraries(mirror: Path) -> None:
    source = fetch.sources()["release"]
    files = fetch.files_below(mirror / source.archive(source.commit), [release.ROUNDS])
    rounds = list(release.read_rounds(files, Repairs()))
    assert len(rounds) == 367
    references = [sample.counselor for sample in rounds]
    for replies in ([sample.client for sample in rounds], [*references[1:], references[0]]):
        expected = [by_the_libraries(*pair) for pair in zip(replies, references, strict=True)]
        assert all_scores(replies, references) == expected


@settings(max_examples=150, deadline=None)
@given(TEXTS, TEXTS)
def test_scores_of_any_pair_equal_the_libraries(reply: str, reference: str) -> None:
    assert sample_scores(reply, reference) == by_the_libraries(reply, reference)


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
    scores = sample_scores(reply, reference)
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, abs=1e-3)


def test_a_worked_example() -> None:
    # jieba cuts 医生 让 我 戒烟 and 老师 让 我 戒烟: 3 of 4 words agree, 2 of 3 pairs, and a common subsequence of 3.
    # Characters: 4 of 6, 3 of 5 pairs, 2 of 4 triples, 1 of 3 quadruples.
    assert list(jieba.cut("医生让我戒烟")) == ["医生", "让", "我", "戒烟"]
    scores = sample_scores("医生让我戒烟", "老师让我戒烟")
    assert scores["rouge_1"] == pytest.approx(75.0, abs=1e-3)
    assert scores["rouge_2"] == pytest.approx(200 / 3, abs=1e-3)
    assert scores["rouge_l"] == pytest.approx(75.0, abs=1e-3)
    assert scores["bleu_4"] == pytest.approx(100 * (4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25, abs=1e-3)


def test_no_common_quadruple_is_smoothed() -> None:
    # 0 of 2 quadruples agree: NLTK's method 3 takes 1 / (2¹ · 2) in its place
    scores = sample_scores("我很想戒烟", "我不想戒烟")
    assert scores["bleu_4"] == pytest.approx(100 * (4 / 5 * 2 / 4 * 1 / 3 * 1 / 4) ** 0.25, abs=1e-3)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=40), st.lists(st.integers(0, 6), max_size=40), st.sampled_from([1, 2, 7, 64]))
def test_the_common_subsequence_is_the_longest(first: list[int], second: list[int], block: int) -> None:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for row, left in enumerate(first, 1):
        for column, right in enumerate(second, 1):
            table[row][column] = (
                table[row - 1][column - 1] + 1 if left == right else max(table[row - 1][column], table[row][column - 1])
            )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK", block)
        assert common_subsequence(list(map(str, first)), list(map(str, second))) == table[-1][-1]


def test_long_texts_need_little_time_and_memory() -> None:
    sample_scores("先", "读词典")
    sides = ["听起来你很想戒烟，又担心自己坚持不下来。" * 5000, "你愿意说说，上一次戒烟时发生了什么吗？" * 5000]
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scores = sample_scores(*(side[:100_000] for side in sides))
    assert 0 < scores["rouge_l"] < 50
    assert time.monotonic() - began < 30
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300_000  # KiB; the libraries' table of all pairs of words would have 3.5e9 entries


def test_the_number_of_processes_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "CHUNK", 100)
    references = [f"你想戒烟{number % 5}次了，很不容易。" for number in range(40)]
    replies = [f"听起来戒烟{number % 7}次很难。" for number in range(40)]
    in_one_process = all_scores(replies, references, processes=1)
    assert in_one_process == [sample_scores(*pair) for pair in zip(replies, references, strict=True)]
    assert all_scores(replies, references, processes=2) == in_one_process


def test_helping_processes_end_with_a_killed_one(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from multiprocessing import get_context\n"
        "from mi_llm.score.text import begin_process\n"
        "if __name__ == '__main__':\n"
        "    pool = ProcessPoolExecutor(1, get_context('spawn'), begin_process)\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    time.sleep(60)\n",
        encoding="utf-8",
    )
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        helper = int(process.stdout.readline())
        process.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{helper}").exists() and state(helper) != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{helper}").exists() or state(helper) == "Z"


def state(process: int) -> str:
    """One letter: Z for a process that has ended and was not waited for."""
    return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]


def test_every_other_score_carries_its_signature() -> None:
    texts = ["我想戒烟"], ["我想戒烟。"]
    pooled, (rouge,) = pooled_scores(*texts), rouge_scores(*texts)
    assert set(pooled) | set(rouge) == {"sacrebleu_zh", "chrf", "rouge_score_1", "rouge_score_2", "rouge_score_l"}
    assert "tok:zh" in pooled["sacrebleu_zh"].signature
    assert "nc:6" in pooled["chrf"].signature
    assert rouge["rouge_score_1"] == pytest.approx(100 * 2 * 4 / 9)


@settings(max_examples=50, deadline=None)
@given(TEXTS, TEXTS)
def test_rouge_scores_longest_subsequence_is_the_librarys(reply: str, reference: str) -> None:
    expected = RougeScorer(["rougeL"], tokenizer=Characters()).score(reference, reply)["rougeL"].fmeasure
    assert rouge_scores([reply], [reference])[0]["rouge_score_l"] == pytest.approx(100 * expected)


def test_a_pooled_scores_interval_is_made_of_the_score_without_each_dialog() -> None:
    replies, references = (
        ["戒烟很难", "今天天气好", "我想戒烟", "你想戒烟", "好", "慢慢来"],
        ["戒烟很难", "戒烟不难", "我想戒烟", "想戒烟", "好的", "慢慢"],
    )
    dialogs = ["a", "b", "a", "c", "d", "e"]
    pooled = pooled_scores(replies, references)["chrf"]
    estimate = DialogBootstrap(dialogs, 400, 0.95, seed=1).estimate_pooled(pooled.counts, pooled.score)
    assert estimate.mean == pytest.approx(pooled.total())
    rest = [[index for index, name in enumerate(dialogs) if name != dialog] for dialog in "abcde"]
    without = [pooled_scores([replies[i] for i in kept], [references[i] for i in kept])["chrf"].total() for kept in rest]
    assert (estimate.lo, estimate.hi) == pytest.approx(jackknife_interval(estimate.mean, [np.array(without)], 0.95), abs=1e-6)


def test_all_comparisons_take_a_second_or_so() -> None:
    chance = np.random.default_rng(1)
    dialogs = [str(index % 40) for index in range(367)]
    began = time.process_time()
    bootstrap = DialogBootstrap(dialogs, 10_000, 0.95, seed=1)
    for _ in range(24):
        differences = chance.normal(size=367).tolist()
        bootstrap.estimate(differences)
        p_of_swaps(differences, dialogs, 10_000, seed=1)
    assert time.process_time() - began < 5


def test_diagnostics_of_a_few_replies() -> None:
    assert repeated_4grams("戒烟很难戒烟很难") == pytest.approx(1 / 5)  # 戒烟很难 comes twice among five
    assert repeated_4grams("戒烟") == 0
    numbers = diagnostics(["戒烟很难", "戒烟很难", "", "我"])
    assert numbers["replies"] == 4
    assert numbers["characters_mean"] == 9 / 4
    assert (numbers["empty"], numbers["duplicate"]) == (0.25, 0.5)
    assert numbers["distinct_1"] == 3 / 5  # 戒烟 很难 戒烟 很难 我
    assert numbers["distinct_2"] == 1 / 2


def test_one_dialog_has_no_reference_of_another() -> None:
    rounds = [Round(id=f"a#{n}", dialog="a", number=n, history=(), client="我想戒烟", counselor="你想戒烟") for n in (1, 2)]
    assert list(baselines(rounds, 1)["predictor"]) == ["echo_client", "constant", "previous_reply", "reference"]
