"""`mi-llm new`: a study of one's own that loads, runs the shipped pipeline, and keeps everything on this machine."""

import re
import shutil
from pathlib import Path

import pytest
from repository import ROOT

from mi_llm import storage
from mi_llm.corpora.acquire import acquire
from mi_llm.corpora.own.importing import import_dialogs
from mi_llm.corpora.read import read
from mi_llm.new import COMMENTS, new
from mi_llm.problem import Problem
from mi_llm.study import load


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what a new study is made from."""
    folder = tmp_path / "repository"
    for name in ("mini", "people", "prompts"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("params.yaml", "publish.yaml", "dvc.yaml", "pins.yaml", "licenses.yaml"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("data", "src"):
        (folder / name).symlink_to(ROOT / name)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("like", ["mini", "paper"])
def test_a_new_study_is_like_the_one_it_began_with_and_keeps_everything_here(repository: Path, like: str) -> None:
    new("mine", like, "睡眠")
    study, before = load(Path("mine/params.yaml")), load(Path("mini/params.yaml" if like == "mini" else "params.yaml"))
    assert (study.name, study.title, study.out, study.params) == ("mine", "睡眠", "runs/mine", "mine/params.yaml")
    own = {"name", "title", "root", "params", "out", "screen", "simulate", "code", "finetune", "report"}
    assert study.model_dump(exclude=own) == before.model_dump(exclude=own)
    assert study.finetune.model_copy(update={"instruction": before.finetune.instruction}) == before.finetune
    for place in (study.screen.decisions, study.simulate.folder, study.code.human, study.finetune.instruction):
        assert place.startswith("mine/")
        assert Path(place).exists()
    assert set(storage.read_yaml(Path("mine/publish.yaml"))["publish"].values()) == {"here"}
    assert Path("mine/dvc.yaml").read_bytes() == (ROOT / "dvc.yaml").read_bytes()
    lines = Path("mine/params.yaml").read_text(encoding="utf-8").splitlines()
    assert sum("# " in line for line in lines if not line.startswith("#")) == len(COMMENTS)


def test_a_newcomers_dialogs_are_read_without_a_source_file_touched(repository: Path, tmp_path: Path) -> None:
    new("mine", "mini", "")
    talks = tmp_path / "talks"
    talks.mkdir()
    for number in range(4):
        text = (
            f"T{number}: 您好，请说。\nC{number}: 我{'很' * number}累。\nT{number + 1}: 您累了？\n"
            f"C{number + 1}: 嗯，我睡不着。\nT9: 您想睡好。"
        )
        (talks / f"{number}.txt").write_text(text, encoding="utf-8")
    import_dialogs(load(Path("mine/params.yaml")), [talks], "sleep", {}, check=False, train=True)
    study = load(Path("mine/params.yaml"))
    acquire(study, "sleep")
    read(study, "sleep")
    numbers = storage.read_json(Path("runs/mine/read/sleep/metrics.json"))
    assert (numbers["dialogs"], numbers["rounds_mean"]) == (4, 2.0)
    assert study.corpora["sleep"].speakers == {"T": "counselor", "C": "client"}


@pytest.mark.parametrize(
    ("name", "like", "words"),
    [
        ("mini", "mini", "mini: exists"),
        ("other", "mini", "runs/other: exists"),
        ("small", "mini", "a study that is called small"),
        ("audit", "mini", "cannot be a study's folder"),
        ("../mine", "mini", "cannot be a study's folder"),
        ("mine", "maxi", "--like maxi: no study to begin with"),
    ],
)
def test_a_name_that_clashes_is_refused_and_nothing_is_written(repository: Path, name: str, like: str, words: str) -> None:
    Path("runs/other").mkdir(parents=True)
    shutil.copytree("mini", "little")
    text = Path("little/params.yaml").read_text(encoding="utf-8")
    storage.write_text(Path("little/params.yaml"), re.sub(r"^name: mini$", "name: small", text, flags=re.M))
    before = sorted(Path().glob("*"))
    with pytest.raises(Problem) as refusal:
        new(name, like, "")
    assert words in str(refusal.value)
    assert sorted(Path().glob("*")) == before
