"""`mi-llm new`: a study of one's own that loads, runs the shipped pipeline, and keeps everything on this machine."""

import re
import shutil
from pathlib import Path

import newcomer
import pytest
from repository import ROOT

from mi_llm import storage
from mi_llm.construct import transcribe
from mi_llm.corpora.acquire import acquire
from mi_llm.corpora.own.importing import import_dialogs
from mi_llm.corpora.read import read
from mi_llm.new import COMMENTS, new
from mi_llm.problem import Problem
from mi_llm.study import Prompts, load

LANGUAGE = ROOT / "src/mi_llm/language/zh"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what a new study is made from."""
    folder = newcomer.repository(tmp_path / "repository")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("like", ["mini", "paper"])
def test_a_new_study_has_the_scale_of_another_and_data_prompts_and_clients_of_its_own(repository: Path, like: str) -> None:
    assert new("mine", like, "睡眠") == 0
    study, before = load(Path("mine/params.yaml")), load(Path("mini/params.yaml" if like == "mini" else "params.yaml"))
    assert (study.name, study.title, study.out, study.params) == ("mine", "睡眠", "runs/mine", "mine/params.yaml")
    assert (study.reproduction, study.corpora, study.transcribe.sample, study.rate.corpora) == (False, {}, {}, ())
    scale = {"seed", "models", "weights", "expect", "llm", "base", "respond", "score", "prefer", "blind", "compare"}
    assert study.model_dump(include=scale) == before.model_dump(include=scale)
    changed = {"instruction": before.finetune.instruction, "records": before.finetune.records}
    assert study.finetune.model_copy(update=changed) == before.finetune
    assert bool(study.report.notice) == (like == "mini")
    prompts = [getattr(study.prompts, name) for name in Prompts.model_fields]
    places = [study.screen.decisions, study.simulate.folder, study.code.human, study.miti.globals, study.finetune.instruction]
    cues = study.code.cues.model_dump()
    for path in (*prompts, *places, *cues.values(), study.simulate.profiles, study.safety.personas):
        assert path.startswith("mine/")
        assert Path(path).exists()
    for file in Path("mine/prompts").iterdir():
        home = LANGUAGE / "prompts" if file.suffix == ".jinja" else LANGUAGE
        assert file.read_bytes() == (home / file.name).read_bytes()
    assert set(storage.read_yaml(Path("mine/publish.yaml"))["publish"].values()) == {"here"}
    assert Path("mine/dvc.yaml").read_bytes() == (ROOT / "dvc.yaml").read_bytes()
    lines = Path("mine/params.yaml").read_text(encoding="utf-8").splitlines()
    assert sum("# " in line for line in lines if not line.startswith("#")) == len(COMMENTS)


def test_a_new_study_may_be_english(repository: Path) -> None:
    new("mine", "mini", "", "en")
    study = load(Path("mine/params.yaml"))
    assert (study.language, study.corpora, study.finetune.cutoff) == ("en", {}, load(Path("mini-en/params.yaml")).finetune.cutoff)
    assert "motivational interviewing" in Path("mine/prompts/counselor.jinja").read_text(encoding="utf-8")
    assert Path("mine/prompts/cues.yaml").read_bytes() == (LANGUAGE.parent / "en/cues.yaml").read_bytes()


def test_what_is_missing_is_said_with_the_command_that_brings_it(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new("mine", "mini", "")
    printed = capsys.readouterr().out
    assert "study mine: cannot run here" in printed
    assert "mi-llm import FOLDER --name NAME --train --study mine/params.yaml" in printed
    assert "fills   Table 2; Table 3" in printed
    assert not re.search(r"Figure 2|real sessions|Table 1\b", printed.partition("study mine")[2])
    with pytest.raises(Problem, match=r"(?s)transcribe.sample: no corpus.*mi-llm import"):
        transcribe.transcribe(load(Path("mine/params.yaml")))


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
        ("mine", "maxi", "--like maxi: unknown"),
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
