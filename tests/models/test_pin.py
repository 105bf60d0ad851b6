"""`mi-llm pin`: a model of a hub becomes an entry of a study, with the hashes of its files; a real server is the hub."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from families import make
from repository import ROOT
from test_hub import REPOSITORY, REVISION, Hub, blob, files_of, serve
from tiny import set_models

from mi_llm import storage
from mi_llm.dialog import Dialog
from mi_llm.engine.load import load
from mi_llm.models.base import base
from mi_llm.models.pin import pin
from mi_llm.problem import Problem
from mi_llm.reproduce import pin_new
from mi_llm.study import Study
from mi_llm.study import load as load_study

PARAMS = Path("mini/params.yaml")


@pytest.fixture
def qwen(workspace: Path, sample_dialogs: list[Dialog], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a tiny Qwen2 in shards."""
    make(workspace / "published", "qwen2", sample_dialogs, shard="50KB")
    with serve(files_of(workspace / "published"), monkeypatch) as served:
        yield served
        served.shutdown()


@pytest.fixture
def pinned(study: Study, qwen: Hub) -> Study:
    """The miniature with that Qwen2 as one more model."""
    pin(study, REPOSITORY, name="qwen2")
    return load_study(PARAMS)


def test_one_command_names_a_model_of_the_hub_beside_the_others(
    study: Study, capsys: pytest.CaptureFixture[str], qwen: Hub, pinned: Study
) -> None:
    assert [*pinned.models] == [*study.models, "qwen2"]
    entry = pinned.models["qwen2"]
    assert (entry.hub, entry.revision, entry.chat_format, entry.license) == (REPOSITORY, REVISION, "checkpoint", "apache-2.0")
    pins = storage.read_yaml(Path("mini/pins.yaml"))[f"{REPOSITORY}@{REVISION}"]
    assert {*pins["files"]} == {*qwen.files} - {"modeling_tiny.py"}
    for name, known_file in pins["files"].items():
        content = qwen.files[name]
        is_large = name.endswith((".safetensors", "tokenizer.json"))
        known = {"sha256": hashlib.sha256(content).hexdigest()} if is_large else {"git": blob(content)}
        assert known_file == {"bytes": len(content), **known}
    assert {name for name, _ in qwen.asked} == {"config.json"}
    text = PARAMS.read_text(encoding="utf-8")
    before = (ROOT / PARAMS).read_text(encoding="utf-8").splitlines()
    assert [line for line in text.splitlines() if line in before] == before, "a line or comment of the file was changed"
    assert "next: mi-llm base qwen2 --study mini/params.yaml" in capsys.readouterr().out


def test_a_model_without_pins_gets_them_at_its_first_use_and_its_entry_stays(pinned: Study) -> None:
    text, pins = PARAMS.read_bytes(), Path("mini/pins.yaml").read_bytes()
    Path("mini/pins.yaml").unlink()
    pin_new(pinned)
    assert (PARAMS.read_bytes(), Path("mini/pins.yaml").read_bytes()) == (text, pins)


@pytest.mark.usefixtures("checkpoints")
def test_models_of_the_hub_in_folders_and_shipped_are_mixed_freely(
    pinned: Study, sample_dialogs: list[Dialog], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MI_LLM_ACCEPT_LICENSES", "qwen2")
    make(workspace / "mine/llama", "llama", sample_dialogs)
    set_models({
        "tiny-glm4": {"chat_format": "glm4"},
        "llama": {"path": "mine/llama", "chat_format": "checkpoint"},
        "qwen2": pinned.models["qwen2"].model_dump(),
    })  # fmt: skip
    study = load_study(PARAMS)
    for model in study.models:
        base(study, model)
        load(study.path("base", model, "checkpoint"), "float32")
    assert study.from_hub == ("qwen2",)
    assert (study.path("base", "qwen2") / "LICENCE/LICENSE").read_bytes() == b"Be kind."
    assert storage.read_json(study.path("base", "qwen2", "source.json")).keys() & {"unverified"} == set()


@pytest.mark.usefixtures("pinned")
def test_pinning_again_takes_the_newest_commit_and_keeps_what_a_person_wrote(qwen: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    content = storage.editable_yaml(PARAMS.read_text(encoding="utf-8"))
    content["models"]["qwen2"]["license"] = "mit"
    PARAMS.write_text(storage.dump_yaml(content), encoding="utf-8")
    qwen.commit = "f" * 40
    monkeypatch.setattr("test_hub.REVISION", qwen.commit)  # where the server has its files
    pin(load_study(PARAMS), REPOSITORY, name="qwen2")
    entry = load_study(PARAMS).models["qwen2"]
    assert (entry.revision, entry.license) == ("f" * 40, "mit")
    assert [*storage.read_yaml(Path("mini/pins.yaml"))] == [f"{REPOSITORY}@{REVISION}", f"{REPOSITORY}@{'f' * 40}"]


def test_a_license_that_the_bundle_does_not_know_stays_unknown_and_is_said(
    study: Study, qwen: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    qwen.license = "qwen-research"
    pin(study, REPOSITORY)
    assert load_study(PARAMS).models["tiny"].license == "unknown"
    assert "license: the hub says qwen-research" in capsys.readouterr().out


def test_what_cannot_be_pinned_is_said_and_nothing_is_written(study: Study, qwen: Hub) -> None:
    before = PARAMS.read_bytes()

    def refused(repository: str = REPOSITORY, **options: str) -> Problem:
        with pytest.raises(Problem) as caught:
            pin(study, repository, **options)
        assert PARAMS.read_bytes() == before
        assert not Path("mini/pins.yaml").exists()
        return caught.value

    assert refused(name="tiny-glm4").where == "mini/params.yaml: models.tiny-glm4"
    assert "models.qwen2.5" in refused(name="qwen2.5").found
    assert refused("nobody/here").found == "no such model"
    whole = dict(qwen.files)
    del qwen.files["tokenizer.json"]
    assert refused().found == "no tokenizer.json"
    qwen.files.update(whole)
    for name in [name for name in qwen.files if "safetensors" in name]:
        del qwen.files[name]
    assert refused().found == "no model.safetensors"
    qwen.files.update(whole)
    config = json.loads(whole["config.json"])
    qwen.files["config.json"] = json.dumps(config | {"model_type": "baichuan"}).encode()
    assert "stage base converts" in refused().found
    qwen.files["config.json"] = json.dumps(config | {"model_type": "nobody", "architectures": ["Nobody"]}).encode()
    assert refused().expected == "an architecture of transformers' own classes"
