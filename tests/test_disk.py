"""What a study takes of the disk, in a clone where real DVC has run the first stages."""

import hashlib
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from pipeline import ran
from repository import PROGRAMS, ROOT

from mi_llm.disk import held, link_bases
from mi_llm.doctor import fitting, machine
from mi_llm.reproduce import targets
from mi_llm.study import Study, load

WEIGHTS = Path("runs/mini/base/tiny-glm4/checkpoint/model.safetensors")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with one base model and one corpus in place."""
    folder = tmp_path_factory.mktemp("clone") / "bundle"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    for words in (
        ["pull", "data.dvc", "pretrain/dvc.yaml"],
        ["repro", "mini/dvc.yaml:base@tiny-glm4", "mini/dvc.yaml:acquire@annomi"],
    ):
        subprocess.run([PROGRAMS / "dvc", *words, "--quiet"], cwd=folder, check=True)
    return folder


@pytest.fixture
def study(clone: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(clone)
    return load(Path("mini/params.yaml"))


def run(*words: str) -> str:
    return subprocess.run([PROGRAMS / words[0], *words[1:]], capture_output=True, text=True, check=True).stdout


def damaged() -> list[Path]:
    """The objects of DVC's cache that do not have the content that they are named after."""
    objects = [path for path in Path(".dvc/cache/files/md5").rglob("*") if path.is_file()]
    assert objects
    names = {path: f"{path.parent.name}{path.name}".removesuffix(".dir") for path in objects}
    return [path for path, name in names.items() if hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != name]


def test_a_base_model_takes_its_size_once_and_dvc_sees_no_change(study: Study) -> None:
    size, before = WEIGHTS.stat().st_size, held(study)
    assert WEIGHTS.stat().st_nlink == 1
    link_bases(study)
    assert WEIGHTS.stat().st_nlink == 2
    assert held(study) == pytest.approx(before - size / 1e9, abs=0.0002)
    assert ran(run("dvc", "repro", "mini/dvc.yaml:base@tiny-glm4")) == []
    assert damaged() == []


@pytest.mark.slow
def test_a_stage_run_by_hand_does_not_reach_dvcs_copies(study: Study) -> None:
    link_bases(study)
    run("mi-llm", "base", "tiny-glm4", "--study", "mini/params.yaml")
    assert WEIGHTS.stat().st_nlink == 1
    assert {file.stat().st_nlink for file in Path("runs/mini/acquire/annomi").iterdir()} == {1}
    assert damaged() == []


def test_a_checkpoint_lost_by_a_kill_comes_back(study: Study) -> None:
    link_bases(study)
    WEIGHTS.unlink()
    (study.folder / "base/.link").touch()
    assert ran(run("dvc", "repro", "mini/dvc.yaml:base@tiny-glm4")) == []
    link_bases(study)
    assert WEIGHTS.stat().st_nlink == 2
    assert not (study.folder / "base/.link").exists()


def test_a_cache_on_another_disk_leaves_the_models_as_they_are(study: Study, clone: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == clone.stat().st_dev:
        pytest.skip("no other disk")
    cache = other / f"mi-llm-{os.getpid()}"
    run("dvc", "cache", "dir", "--local", str(cache))
    try:
        shutil.copytree(".dvc/cache/files", cache / "files")
        WEIGHTS.unlink()
        run("dvc", "checkout", "mini/dvc.yaml:base@tiny-glm4")
        link_bases(study)
        assert WEIGHTS.stat().st_nlink == 1
        assert held(study) == pytest.approx(sum(file.stat().st_size for file in study.folder.rglob("*")) / 1e9, rel=0.2)
    finally:
        run("dvc", "cache", "dir", "--local", "--unset")
        shutil.rmtree(cache)


def test_a_run_half_way_asks_only_for_the_disk_that_it_still_needs(study: Study) -> None:
    holds = held(study)
    assert holds > WEIGHTS.stat().st_size / 1e9
    wanting = study.model_copy(update={"expect": study.expect.model_copy(update={"disk_gb": holds + 2})})
    assert not any("disk" in line for line in fitting(wanting, replace(machine(), disk=2.05), []))
    assert "1.9 GB of disk are free, 2.0 are needed besides what the study holds" in fitting(
        wanting, replace(machine(), disk=1.9), []
    )


def test_the_hubs_models_come_one_by_one_so_that_each_is_linked_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert targets(load(Path("mini/params.yaml"))) == ["mini/dvc.yaml"]
    models = ["baichuan2-7b", "glm-4-9b", "llama-3-8b-chinese"]
    assert targets(load(Path("params.yaml"))) == ["dvc.yaml:split", *(f"dvc.yaml:base@{model}" for model in models), "dvc.yaml"]
