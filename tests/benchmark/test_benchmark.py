"""What tuning costs: our questions, the harness asking as the study asks, and the comparison of base and tuned."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
from repository import ROOT
from tiny import give_adapter, study_with

from mi_llm.benchmark import benchmark as stage
from mi_llm.benchmark import tasks
from mi_llm.engine.counselor import acting_as, with_adapter
from mi_llm.engine.load import chat_format
from mi_llm.engine.template import prompt
from mi_llm.problem import Problem
from mi_llm.study import Study, load

MODEL = "tiny-llama3"
QUESTIONS = [json.loads(line) for line in (ROOT / "questions/mi_health.jsonl").read_text(encoding="utf-8").splitlines()]
DESCRIPTION = "以下是关于健康行为和动机式访谈的单项选择题，请选出其中的正确答案。"


@pytest.fixture
def ready(workspace: Path, checkpoints: Path) -> Study:
    """A study with one model that has an adapter, which no training made."""
    pytest.importorskip("lm_eval", reason="make harness")
    study = study_with(threads="1", benchmark_models=f"[{MODEL}]")
    give_adapter(study, MODEL)
    return study


def test_forty_questions_of_our_own() -> None:
    assert Counter(question["topic"] for question in QUESTIONS) == {"health": 20, "mi": 20}
    assert Counter(question["answer"] for question in QUESTIONS) == dict.fromkeys("ABCD", 10)
    assert len({question["question"] for question in QUESTIONS}) == 40
    assert all(len({question[letter] for letter in "ABCD"}) == 4 for question in QUESTIONS)


def likelier(study: Study, arm: str, questions: Sequence[dict[str, str]]) -> list[int]:
    """The option, from 1, whose letter an arm finds likeliest: by plain transformers, one question after the other."""
    network, tokenizer = with_adapter(study, MODEL)
    network.get_base_model().set_attn_implementation("eager")
    letters = [tokenizer(letter, add_special_tokens=False)["input_ids"][-1] for letter in "ABCD"]
    options = []
    with torch.no_grad(), acting_as(arm, network):
        for question in questions:
            lines = [question["question"], *(f"{letter}. {question[letter]}" for letter in "ABCD"), "答案："]
            chat = [{"role": "system", "content": DESCRIPTION}, {"role": "user", "content": "\n".join(lines)}]
            ids = prompt(tokenizer, chat_format(study, MODEL), chat)
            options.append(1 + int(network(torch.tensor([ids])).logits[0, -1, letters].argmax()))
    return options


def test_the_harness_asks_as_the_study_asks(ready: Study) -> None:
    stage.benchmark(ready, MODEL)
    folder = ready.path("benchmark", MODEL)
    items = pd.read_csv(folder / "items.csv")
    assert list(items["item"]) == list(range(40))
    assert set(items["options"]) == {4}
    for arm in ("base", "tuned"):
        assert list(items[f"{arm}_chosen"]) == likelier(ready, arm, QUESTIONS)
        right = [
            " ABCD"[chosen] == question["answer"] for chosen, question in zip(items[f"{arm}_chosen"], QUESTIONS, strict=True)
        ]
        assert list(items[f"{arm}_right"] == 1) == right
    assert list(items["base_chosen"]) != list(items["tuned_chosen"])
    assert "动机" not in (folder / "items.csv").read_text(encoding="utf-8")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    stage.benchmark(ready, MODEL)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.slow
def test_a_published_set_is_read_from_a_folder_like_the_hubs(ready: Study, tmp_path: Path) -> None:
    from mi_llm.benchmark.harness import loaded_tasks

    folder = tmp_path / "asked"
    files = folder / "ceval" / "ceval-exam"
    files.mkdir(parents=True)
    card = {"configs": [{"config_name": "accountant", "data_files": [{"split": s, "path": f"{s}.csv"} for s in ("val", "dev")]}]}
    (files / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n", encoding="utf-8")
    for split, answers in (("val", "AB"), ("dev", "C")):
        rows = [
            {"id": row, "question": f"{split}题{row}", **dict.fromkeys("ABCD", "项"), "answer": a}
            for row, a in enumerate(answers)
        ]
        pd.DataFrame(rows).to_csv(files / f"{split}.csv", index=False)
    changes = {"tasks": ("ceval-valid_accountant",), "shots": 1, "folder": "asked"}
    study = ready.model_copy(update={"benchmark": ready.benchmark.model_copy(update=changes)})
    with loaded_tasks(study) as tasks_by_name:
        ((part,),) = tasks_by_name.values()
        assert [doc["answer"] for doc in part.validation_docs()] == ["A", "B"]
    items = stage.answered(study, MODEL)
    assert list(items["part"]) == ["ceval-valid_accountant"] * 2
    other = study.model_copy(update={"benchmark": study.benchmark.model_copy(update={"tasks": ("ceval-valid_law",)})})
    with pytest.raises(Problem, match=r"benchmark\.tasks: ceval-valid_law.*BuilderConfig 'law' not found"), loaded_tasks(other):
        pass


def test_a_description_goes_where_the_chat_format_has_room() -> None:
    pytest.importorskip("lm_eval", reason="make harness")
    from mi_llm.benchmark.harness import asked

    chat = [{"role": "system", "content": "说明\n\n"}, {"role": "user", "content": "题"}]
    assert asked(chat, system=True) == [{"role": "system", "content": "说明"}, {"role": "user", "content": "题"}]
    assert asked(chat, system=False) == [{"role": "user", "content": "说明\n\n题"}]
    assert asked(chat[1:], system=True) == chat[1:]


def test_a_question_that_does_not_fit_is_refused(ready: Study, tmp_path: Path) -> None:
    folder = tmp_path / "long"
    folder.mkdir()
    row = QUESTIONS[0] | {"question": "很长" * 5000}
    (folder / "mi_health.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "mi_health.yaml").write_text((ROOT / "questions/mi_health.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    study = ready.model_copy(update={"benchmark": ready.benchmark.model_copy(update={"folder": "long"})})
    with pytest.raises(Problem, match=r"a question of \d+ tokens\n.*at most 4096, the model's context"):
        stage.benchmark(study, MODEL)


def test_accuracies_and_their_change_a_worked_example() -> None:
    rights = {"first": [(0, 1)] * 6 + [(1, 1)] * 14 + [(0, 0)] * 20, "second": [(1, 0)] * 2 + [(0, 1)] * 2 + [(1, 1)] * 6}
    rows = [
        {"task": task, "options": 4, "base_right": base, "tuned_right": tuned}
        for task, pairs in rights.items()
        for base, tuned in pairs
    ]
    first, second = stage.compared(pd.DataFrame(rows), 0.95).to_dict("records")
    assert (first["items"], first["by_guessing"], first["base"], first["tuned"], first["change"]) == (40, 25, 35, 50, 15)
    assert (first["gained"], first["lost"], first["p"]) == (6, 0, 2 * 0.5**6)
    assert first["p_holm"] == 2 * first["p"]
    # Bonett and Price: (7 - 1) / 42 ± 1.96 √((7/42 + 1/42 - (6/42)²) / 42)
    assert (first["lo"], first["hi"]) == pytest.approx((100 * (1 / 7 - 0.12472), 100 * (1 / 7 + 0.12472)), abs=0.01)
    assert first["base_lo"] == pytest.approx(20.63, abs=0.01)  # Clopper and Pearson, 14 of 40
    assert (second["change"], second["p"], second["p_holm"]) == (0, 1, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"untuned": f"[{MODEL}]"}, f"{MODEL} is not tuned"),
        ({"tasks": "[mi_health, mmlu]"}, r"questions/cais/mmlu: no such folder\n.*the files of mmlu\n.*hf download cais/mmlu"),
    ],
)
def test_what_cannot_be_examined(workspace: Path, changes: dict[str, str], words: str) -> None:
    pytest.importorskip("lm_eval", reason="make harness")
    with pytest.raises(Problem, match=words):
        stage.benchmark(study_with(**changes), MODEL)


def test_without_the_harness_the_stage_says_how_to_get_it(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "find_spec", lambda _: None)
    with pytest.raises(Problem, match=r"no package lm-eval\n.*\n.*make harness"):
        stage.benchmark(load(Path("mini/params.yaml")), MODEL)
