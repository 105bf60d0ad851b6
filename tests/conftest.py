"""Shared fixtures: a scratch workspace that looks like the repository, and models small enough to train in a test."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings
from scored import make_scored
from tiny import untrained
from transformers import PreTrainedTokenizerFast

from mi_llm.corpora.files import from_folder
from mi_llm.corpora.read import READERS
from mi_llm.corpora.reading import Repairs
from mi_llm.dialog import Dialog
from mi_llm.models.pretrain import train_tokenizer
from mi_llm.report.page import report
from mi_llm.study import Study, load

ROOT = Path(__file__).parent.parent
UPSTREAM = ROOT.parent / "shared" / "upstream"

settings.register_profile("repeatable", derandomize=True)  # a commit that was green stays green
settings.register_profile("explore", max_examples=2000)  # pytest --hypothesis-profile explore: new examples each time
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def mirror() -> Path:
    """A folder with the public archives, where there is one: MI_LLM_MIRROR, or ../shared/upstream."""
    folder = Path(os.environ.get("MI_LLM_MIRROR", UPSTREAM))
    if not folder.is_dir():
        pytest.skip("no mirror of the public corpora (MI_LLM_MIRROR)")
    return folder


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the bundle's data, prompts and parameters in it, made the current folder."""
    for name in ("data", "prompts", "src", "docs", "CITATION.cff"):
        (tmp_path / name).symlink_to(ROOT / name)
    for study in ("mini", "released"):
        (tmp_path / study).mkdir()
        people = ("decisions/decisions.csv", "people/dialogs/README.md", "people/codes/codes.csv", "people/codes/globals.csv")
        for file in ("params.yaml", "dvc.yaml", *people):
            (tmp_path / study / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / study / file).write_bytes((ROOT / study / file).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def study(workspace: Path) -> Study:
    """The miniature study, in the scratch workspace."""
    return load(Path("mini/params.yaml"))


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that needs the reported miniature leaves it for the others."""
    return tmp_path_factory.mktemp("scored") / "runs"


@pytest.fixture
def scored(workspace: Path, study: Study, kept: Path) -> Study:
    """The miniature with its report: the tuned replies are the references, the base replies echo the client."""
    if not kept.exists():
        make_scored(study)
        report(study)
        shutil.copytree("runs", kept)
    shutil.copytree(kept, "runs", dirs_exist_ok=True)
    return study


@pytest.fixture(scope="session")
def sample_dialogs() -> list[Dialog]:
    """The bundle's own CPsyCounD-format dialogs."""
    return list(READERS["cpsycound"](from_folder(ROOT / "data" / "corpora" / "cpsycound"), Repairs()))


@pytest.fixture(scope="session")
def tokenizer(sample_dialogs: list[Dialog]) -> PreTrainedTokenizerFast:
    """A small tokenizer with the special tokens of all chat formats."""
    return train_tokenizer(sample_dialogs, 900)


@pytest.fixture
def checkpoints(workspace: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Untrained checkpoints of the three architectures, where the miniature looks for its models."""
    return untrained(workspace / "pretrain" / "models", tokenizer)
