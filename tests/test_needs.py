"""What a run needs is known before it starts: what is here, what will be fetched, what is absent and what then stays empty."""

import os
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import made_up_release
import pytest
from repository import PROGRAMS, ROOT
from tiny import set_models

from mi_llm import storage
from mi_llm.corpora.fetch import sources
from mi_llm.doctor import Machine, fitting, main_memory
from mi_llm.llm.cassette import Cassette, Question
from mi_llm.llm.record import record_of
from mi_llm.needs import PARTS, listed, needs, outlook
from mi_llm.reproduce import accept_licenses
from mi_llm.study import Study, load

BARE = Machine(
    python="3.11", cores=2, memory=24, disk=1000, gpus=(), engine=None, fonts=True, network=False, hub=False, key=False,
    mirror=None, driver=None, git=None,
)  # fmt: skip


@pytest.fixture
def paper(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The root's own study, of which nothing is here."""
    for name in ("MI_LLM_MODELS", "MI_LLM_ACCEPT_LICENSES"):
        monkeypatch.delenv(name, raising=False)
    for path in ("params.yaml", "dvc.yaml", "people/codes/codes.csv", "decisions/decisions.csv"):
        (workspace / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, workspace / path)
    return load(Path("params.yaml"))


def states(study: Study, machine: Machine) -> dict[str, str]:
    """The state of each need, by the stage and the first word of what it is."""
    return {f"{need.stage}: {need.what}": need.state for need in needs(study, machine)}


def test_the_files_of_a_benchmark_are_asked_for_before_anything_is_fetched(paper: Study) -> None:
    assert not any(need.stage == "benchmark" for need in needs(paper, BARE))
    examined = paper.model_copy(update={"benchmark": paper.benchmark.model_copy(update={"models": ("glm-4-9b",)})})
    missing = "\n".join(fitting(examined, BARE, needs(examined, BARE)))
    fetch = "hf download ceval/ceval-exam --repo-type dataset --local-dir questions/ceval/ceval-exam"
    assert f"the files of ceval-valid: {fetch}" in missing
    assert missing.count("the files of ") == 3  # our own are here


def test_a_bare_machine_is_told_in_one_list_what_is_missing(paper: Study) -> None:
    missing = "\n".join(fitting(paper, BARE, needs(paper, BARE)))
    for what in (
        "no NVIDIA GPU",
        "corpus release",
        "trian_2000.json",
        "weights of glm-4-9b (18.8 GB)",
        "licenses of baichuan2-7b, glm",
    ):
        assert what in missing
    assert "corpus smilechat" not in missing  # a run can do without
    optional = "\n".join(outlook(needs(paper, BARE)))
    for what in ("corpus smilechat", "ratings", "AnnoMI in Chinese", "talks with glm-4-9b", "codes by people"):
        assert what in optional
    lines = listed(paper, needs(paper, BARE)).splitlines()
    (empty,) = (line.removeprefix("  empty   ").split("; ") for line in lines if line.startswith("  empty"))
    assert empty == list(PARTS)


def test_the_training_file_is_looked_for_loose_and_in_the_mirrors_archive(paper: Study, tmp_path: Path) -> None:
    key, mirror = "transcribe: the authors' training file, trian_2000.json", tmp_path / "mirror"
    mirror.mkdir()
    machine = replace(BARE, mirror=str(mirror))
    released = made_up_release.files(ROOT / "data")
    archive = mirror / sources()["release"].archive(sources()["release"].commit)
    made_up_release.pack(archive, {name: part for name, part in released.items() if not name.endswith("trian_2000.json")})
    assert states(paper, machine)["acquire: corpus release"] == "to be fetched"
    assert states(paper, machine)[key] == "absent"
    (mirror / "trian_2000.json").write_bytes(b"[]")
    assert states(paper, machine)[key] == "to be fetched"
    (mirror / "trian_2000.json").unlink()
    made_up_release.pack(archive, released)
    assert states(paper, machine)[key] == "to be fetched"
    storage.write_text(paper.folder / "read/release/training.jsonl", "{}\n")
    assert states(paper, BARE)[key] == "here"
    untuned = paper.model_copy(update={"finetune": paper.finetune.model_copy(update={"untuned": (*paper.models,)})})
    assert key not in states(untuned, BARE)


def test_recordings_count_if_they_are_the_studys_models(paper: Study) -> None:
    def answered(model: str) -> None:
        question = Question("a dialog", {"model": model, "messages": []}, {"name": "p", "sha256": "0"}, lambda _: None)
        body, now = '{"choices": [{"message": {"content": "{}"}}]}', datetime.now(UTC)
        Cassette(paper.folder / "rate/cassette.jsonl").append([record_of(question, body, now, now)])

    answered("another")
    key = "rate: ratings, recorded from gpt-4"
    assert states(paper, BARE)[key] == "absent"
    answered("gpt-4")
    assert states(paper, BARE)[key] == "here"
    recording = paper.model_copy(update={"llm": paper.llm.model_copy(update={"mode": "record"})})
    assert states(recording, BARE)["translate: AnnoMI in Chinese, recorded from gpt-4"] == "to be recorded"


def test_the_miniature_needs_nothing_that_is_not_here(study: Study) -> None:
    needed = needs(study, BARE)
    assert {need.state for need in needed} == {"here"}
    assert "empty" not in listed(study, needed)


def test_a_model_in_a_folder_is_needed_before_anything_begins(study: Study, workspace: Path) -> None:
    set_models({"own": {"path": "mine/own", "chat_format": "checkpoint"}})
    mine = load(Path("mini/params.yaml"))
    assert states(mine, BARE)["base: model own, in mine/own"] == "absent"
    assert any(line.startswith("model own, in mine/own: ") for line in fitting(mine, BARE, needs(mine, BARE)))
    (workspace / "mine/own").mkdir(parents=True)
    assert states(mine, BARE)["base: model own, in mine/own"] == "here"


def test_without_a_gpu_a_model_of_the_hub_needs_float32_and_main_memory(paper: Study) -> None:
    in_float32 = paper.model_copy(update={"finetune": paper.finetune.model_copy(update={"precision": "float32"})})
    lacking = [line for line in fitting(in_float32, BARE, []) if "main memory" in line]
    assert [line.split()[0] for line in lacking] == [*paper.models]
    assert all(line.endswith("and 24 GB are there") for line in lacking)
    assert fitting(in_float32, replace(BARE, memory=200), []) == []
    assert all(24e9 < need < 200e9 for need in main_memory(in_float32).values())


def test_all_licenses_are_accepted_before_anything_is_fetched(paper: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    acceptance = "base: your acceptance of the licenses of baichuan2-7b, glm-4-9b, llama-3-8b-chinese"
    assert states(paper, BARE)[acceptance] == "absent"
    monkeypatch.setenv("MI_LLM_ACCEPT_LICENSES", ",".join(paper.models))
    assert acceptance not in states(paper, BARE)
    accept_licenses(paper)
    monkeypatch.delenv("MI_LLM_ACCEPT_LICENSES")
    assert acceptance not in states(paper, BARE)  # remembered


@pytest.mark.slow
def test_the_papers_study_stops_at_once_on_a_machine_without_any_of_it(tmp_path: Path) -> None:
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "bundle")], check=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MI_LLM_")}
    command = [str(PROGRAMS / "mi-llm"), "reproduce", "paper", "--yes"]
    done = subprocess.run(
        command, cwd=tmp_path / "bundle", env={**environment, "HF_ENDPOINT": "http://127.0.0.1:9"}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    for what in ("no NVIDIA GPU", "weights of baichuan2-7b", "licenses of baichuan2-7b", "not needed to begin: ratings"):
        assert what in done.stderr
    assert done.stderr.count("what to do") == 1
    assert not (tmp_path / "bundle/runs").exists()
