"""The study's data for LLaMA-Factory: records as its own converter was given them, settings that its YAML reader takes."""

import json
import sys
import warnings
from pathlib import Path

import pytest
from repository import ROOT
from ruamel.yaml import YAML
from ruamel.yaml.error import MantissaNoDotYAML1_1Warning

from mi_llm import prompts
from mi_llm.dialog import Dialog, Turn, write_dialogs, write_rounds
from mi_llm.models.llamafactory import alpaca, export
from mi_llm.problem import Problem
from mi_llm.study import Study

sys.path.insert(0, str(ROOT / "benchmarks" / "llamafactory"))
import preparing  # what the recorded references of LLaMA-Factory were made from

GIVEN = json.loads((ROOT / "tests/references/llamafactory/dialogs.json").read_text(encoding="utf-8"))


def turns_of(rounds: list[list[str]]) -> list[Turn]:
    return [Turn(role=role, text=text) for pair in rounds for role, text in zip(("client", "counselor"), pair, strict=True)]  # type: ignore[arg-type]


@pytest.fixture
def split(study: Study) -> Study:
    dialogs = [Dialog(id=name, source="x", turns=tuple(turns_of(rounds))) for name, rounds in GIVEN["dialogs"].items()]
    write_dialogs(study.path("split", "train.jsonl"), dialogs[:-1])
    write_rounds(study.path("split", "test_rounds.jsonl"), dialogs[-1].rounds())
    return study


@pytest.mark.parametrize("placement", ["query", "system"])
@pytest.mark.parametrize("name", GIVEN["dialogs"])
def test_a_record_is_the_one_whose_tokens_were_recorded_from_llamafactory(name: str, placement: str) -> None:
    rounds = GIVEN["dialogs"][name]
    assert alpaca(turns_of(rounds), GIVEN["instruction"], placement) == preparing.alpaca(rounds, GIVEN["instruction"], placement)


def test_a_counselor_who_opens_gets_an_empty_client_volley_before(split: Study, capsys: pytest.CaptureFixture[str]) -> None:
    opening = Turn(role="counselor", text="你好")
    turns = [opening, *turns_of([["我想戒烟", "你想戒烟"]])]
    record = alpaca(turns, "", "query")
    assert (record["history"], record["input"]) == ([["", "你好"]], "我想戒烟")
    write_dialogs(split.path("split", "train.jsonl"), [Dialog(id="a", source="x", turns=tuple(turns))])
    export(split, Path("lf"))
    assert "1 of them begin with the counselor" in capsys.readouterr().out


def test_the_folder_holds_records_and_the_studys_settings(split: Study, tmp_path: Path) -> None:
    rate = 0.00002  # whose shortest form YAML 1.1 takes for text
    study = split.model_copy(update={"finetune": split.finetune.model_copy(update={"learning_rate": rate})})
    export(study, Path("dist/lf"))
    listed = json.loads(Path("dist/lf/dataset_info.json").read_text(encoding="utf-8"))
    preparing.data_folder([], tmp_path / "peer")
    known = json.loads((tmp_path / "peer/dataset_info.json").read_text(encoding="utf-8"))["dialogs"]["columns"]
    assert {entry["columns"] == known for entry in listed.values()} == {True}
    records = {
        name: json.loads(Path("dist/lf", entry["file_name"]).read_text(encoding="utf-8")) for name, entry in listed.items()
    }
    assert len(records["mi_train"]) == len(GIVEN["dialogs"]) - 1
    assert [record["output"] for record in records["mi_test"]] == [reply for _, reply in list(GIVEN["dialogs"].values())[-1]]
    assert records["mi_train"][0]["system"] == prompts.instruction(study)

    reader = YAML(typ="safe", pure=True)
    reader.version = (1, 1)  # as the reader of LLaMA-Factory's YAML files
    with pytest.warns(MantissaNoDotYAML1_1Warning):
        reader.load("rate: 2e-05")
    with warnings.catch_warnings(action="error"):
        settings = reader.load(Path("dist/lf/tiny-glm4.train.yaml"))
    assert (settings["learning_rate"], settings["template"], settings["dataset"]) == (rate, "glm4", "mi_train")
    assert settings["lora_rank"] == study.finetune.lora.rank
    answering = reader.load(Path("dist/lf/tiny-glm4.predict.yaml"))
    assert (answering["eval_dataset"], answering["adapter_name_or_path"]) == ("mi_test", settings["output_dir"])
    with pytest.raises(Problem, match="is there already"):
        export(study, Path("dist/lf"))
