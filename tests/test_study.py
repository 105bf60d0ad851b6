"""Parameters: every shipped file loads, and what is not known or not possible is refused in words."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from edits import edit
from repository import ROOT
from tiny import study_with

from mi_llm.construct import transcribe, translate
from mi_llm.dialog import write_dialogs
from mi_llm.miti.simulate import profiles
from mi_llm.prefer.prefer import drawn_rounds
from mi_llm.problem import Problem
from mi_llm.study import Study, file_of, load

SHIPPED = sorted(path for path in [ROOT / "params.yaml", *ROOT.glob("*/params.yaml")] if path.parent.name != "pretrain")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
def test_every_shipped_file_loads(path: Path) -> None:
    study = load(path)
    assert (path.parent / study.root).resolve() == ROOT
    assert (ROOT / study.params) == path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
def test_every_study_has_the_same_stages(path: Path) -> None:
    assert (path.parent / "dvc.yaml").read_bytes() == (ROOT / "dvc.yaml").read_bytes()


def test_the_pipeline_names_no_model() -> None:
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    assert [name for path in SHIPPED for name in load(path).models if name in text] == []


def test_the_root_file_holds_the_papers_values() -> None:
    study = load(ROOT / "params.yaml")
    tuning = study.finetune
    assert (tuning.learning_rate, tuning.scheduler, tuning.warmup_ratio) == (1e-4, "cosine", 0.1)
    assert (tuning.batch, tuning.accumulation, tuning.epochs, tuning.precision) == (1, 8, 3, "bfloat16")
    assert (tuning.cutoff, tuning.log_every, tuning.save_every) == (2048, 10, 500)
    assert study.transcribe.sample == {"cpsycound": 1520, "psydtcorpus": 520}
    assert study.split.test_dialogs == 40


def test_every_value_of_the_root_file_says_where_it_is_from() -> None:
    lines = (ROOT / "params.yaml").read_text(encoding="utf-8").splitlines()
    values = [line for line in lines if line.strip() and not line.startswith("#") and not line.rstrip().endswith(":")]
    assert len(values) > 50
    assert [line for line in values if "#" not in line] == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("seed: 42", "seeed: 42"), ["unknown key seeed", "seed"]),
        (("  rank: 8", "  rankk: 8"), ["finetune.lora.rankk", "rank"]),
        (("    rank: 8", "    rank: many"), ["finetune.lora.rank is 'many'", "integer"]),
        (("policy: automatic", "policy: maybe"), ["screen.policy is 'maybe'", "'automatic' or 'person'"]),
        (("  annomi: {}\n", "  anomi: {}\n"), ["corpora names anomi", "one of annomi, cpsycound, efaqa"]),
        (("  annomi: {}\n", "  annomi: {pth: x}\n"), ["unknown key corpora.annomi.pth", "one of columns, drop"]),
        (("  efaqa: {}\n", "  ../efaqa: {}\n"), ["corpora.../efaqa"]),
        (("coder: lexical", "coder: parrot"), ["code.coder is 'parrot'", "one of human, lexical, llm"]),
        (
            ("tiny-glm4: {chat_format: glm4", "tiny-glm4: {chat_format: plain"),
            ["models.tiny-glm4.chat_format is 'plain'", "one of checkpoint, baichuan2, glm4, llama3"],
        ),
        (("test_dialogs: 12", "test_dialogs: 72"), ["must be smaller than the 72"]),
        (("  epochs: 4\n", ""), ["finetune.epochs is missing"]),
        (("name: mini", "name: [mini"), ["not YAML"]),
        (("  tiny-baichuan2: {", "  '../../../../victim': {"), ["models.../../../../victim", "match pattern"]),
        (("  tiny-baichuan2: {", "  '..': {"), ["models...", "match pattern"]),
        (("  tiny-baichuan2: {", "  qwen2.5: {"), ["models.qwen2.5", "match pattern"]),  # DVC's keys know no dots
        (("{chat_format: glm4,", "{hub: a/b, chat_format: glm4,"), ["models.tiny-glm4", "hub and revision, its full commit"]),
        (("{chat_format: glm4,", "{hub: a/b, revision: main, chat_format: glm4,"), ["models.tiny-glm4.revision is 'main'"]),
        (
            ("{chat_format: glm4,", f"{{path: a, hub: a/b, revision: {'a' * 40}, chat_format: glm4,"),
            ["models.tiny-glm4", "of the hub (hub, revision) or in a folder (path), not both"],
        ),
        (("{chat_format: glm4,", "{"), ["models.tiny-glm4.chat_format is missing"]),
        (
            ("{chat_format: glm4,", "{chat_format: glm4, weights: x,"),
            ["unknown key models.tiny-glm4.weights"],
        ),
        (("out: runs/mini", "out: ../elsewhere"), ["out is '../elsewhere'", "a path inside the repository"]),
        (("out: runs/mini", "out: runs/../../elsewhere"), ["a path inside the repository"]),
        (("out: runs/mini", "out: /tmp"), ["a path inside the repository"]),
        (("out: runs/mini", "out: ."), ["a path inside the repository"]),
        (("out: runs/mini", "out: ./.git/hooks"), ["out is './.git/hooks'", "not in .dvc, .git, data, src, store"]),
        (("out: runs/mini", "out: store"), ["not in .dvc, .git, data, src, store"]),
        (("params: mini/params.yaml", "params: ../victim/params.yaml"), ["params is '../victim/params.yaml'"]),
        (("further: [1, 2]", "further: [1, 42]"), ["seeds.further names 42", "the study's own seed"]),
        (("further: [1, 2]", "further: [1, 2, 1]"), ["seeds.further is [1, 2, 1]", "1 stands there twice"]),
        (("seeds:\n  models: []", "seeds:\n  models: [tiny-glm5]"), ["seeds.models names tiny-glm5", "not among models"]),
    ],
    ids=lambda value: value[1].strip() if isinstance(value, tuple) else "",
)
def test_a_bad_file_is_refused_in_words(tmp_path: Path, change: tuple[str, str], words: list[str]) -> None:
    path = tmp_path / "params.yaml"
    shutil.copy(ROOT / "mini" / "params.yaml", path)
    edit(path, dict([change]))
    with pytest.raises(Problem) as refusal:
        load(path)
    for word in [str(path), *words]:
        assert word in str(refusal.value)


def test_seeds_differ_by_purpose_and_stay_the_same() -> None:
    study = load(ROOT / "mini" / "params.yaml")
    assert study.seed_of("split") == study.seed_of("split")
    assert len({study.seed_of("split"), study.seed_of("score"), study.seed_of("finetune", "tiny-glm4")}) == 3


@pytest.mark.parametrize(
    ("setting", "changes", "draw"),
    [
        ("transcribe.sample.cpsycound", {}, lambda study: transcribe.sample(study, "cpsycound", [])),
        ("translate.transcripts", {}, translate.sample),
        ("prefer.rounds", {}, drawn_rounds),
        ("simulate.dialogs", {"simulate_dialogs": "99"}, profiles),
    ],
)
@pytest.mark.usefixtures("workspace")
def test_more_than_there_is_cannot_be_drawn(setting: str, changes: dict[str, str], draw: Callable[[Study], object]) -> None:
    study = study_with(**changes)
    for path in (study.path("read", "annomi", "dialogs.jsonl"), study.path("split", "train.jsonl")):
        write_dialogs(path, [])
    with pytest.raises(Problem, match=rf"{setting}(.|\n)*at most the \d+ available(.|\n)*lower it"):
        draw(study)


def test_a_study_is_meant_by_name_folder_or_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert [file_of(Path(name)) for name in ("paper", "mini", "mini/params.yaml")] == [
        Path("params.yaml"), Path("mini/params.yaml"), Path("mini/params.yaml"),
    ]  # fmt: skip
    with pytest.raises(Problem, match=r"(?s)papper: no such study.*expected: paper"):
        load(file_of(Path("papper")))
