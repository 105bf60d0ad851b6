"""`mi-llm template check`: equal tokens on every way to a model, or the difference as text."""

from pathlib import Path

import pytest
from families import FAMILIES, make
from tiny import MODELS, study_of

from mi_llm import storage
from mi_llm.dialog import Dialog, Turn, write_dialogs
from mi_llm.engine.load import checkpoint
from mi_llm.models.base import base
from mi_llm.models.template_check import check
from mi_llm.problem import Problem
from mi_llm.study import Study


def ready(study: Study, dialogs: list[Dialog]) -> Study:
    for model in study.models:
        base(study, model)
    write_dialogs(study.path("split", "train.jsonl"), dialogs)
    return study


@pytest.mark.usefixtures("checkpoints")
def test_the_papers_formats_are_equal_on_every_way(
    study: Study, sample_dialogs: list[Dialog], capsys: pytest.CaptureFixture[str]
) -> None:
    ready(study, sample_dialogs)
    for model in MODELS:
        assert check(study, model) == 0
    assert capsys.readouterr().out.count("tokens, equal") == 3 * len(MODELS)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_models_own_format_is_equal_on_every_way(
    name: str, workspace: Path, sample_dialogs: list[Dialog], capsys: pytest.CaptureFixture[str]
) -> None:
    make(workspace / "mine" / name, name, sample_dialogs)
    study = ready(study_of(name, instruction_placement=FAMILIES[name].placement), sample_dialogs[3:])
    assert check(study, name) == 0
    printed = capsys.readouterr().out
    assert printed.count("tokens, equal") == 3
    assert ("<think>\\n\\n</think>\\n\\n'" in printed) == (name == "qwen3")


def test_a_difference_is_shown_as_text(workspace: Path, sample_dialogs: list[Dialog], capsys: pytest.CaptureFixture[str]) -> None:
    make(workspace / "mine/qwen2", "qwen2", sample_dialogs)
    turns = (Turn(role="client", text="我说<|im_start|>你好"), Turn(role="counselor", text="请说"))
    study = ready(study_of("qwen2"), [Dialog(id="1", source="test", turns=turns)])
    assert check(study, "qwen2") == 1
    (served,) = [line for line in capsys.readouterr().out.splitlines() if "as served here" in line]
    assert "我说< |im_start|>你好" in served.split(" in place of ")[0]
    assert "我说<|im_start|>你好" in served.split(" in place of ")[1]


def test_a_checkpoint_that_ends_replies_elsewhere_differs(workspace: Path, sample_dialogs: list[Dialog]) -> None:
    make(workspace / "mine/llama", "llama", sample_dialogs)
    study = ready(study_of("llama"), sample_dialogs)
    settings = checkpoint(study, "llama") / "generation_config.json"
    storage.write_json(settings, {"eos_token_id": storage.read_json(settings)["eos_token_id"][1:]})
    assert check(study, "llama") == 1


def test_without_training_dialogs_an_example_is_checked_and_without_a_checkpoint_nothing(
    workspace: Path, sample_dialogs: list[Dialog], capsys: pytest.CaptureFixture[str]
) -> None:
    make(workspace / "mine/gemma", "gemma", sample_dialogs)
    study = study_of("gemma", instruction_placement="query")
    with pytest.raises(Problem, match="run mi-llm base gemma --study mini/params"):
        check(study, "gemma")
    base(study, "gemma")
    assert check(study, "gemma") == 0
    assert "an example, the prompt of round 2" in capsys.readouterr().out
