"""Shared fixtures: a scratch workspace that looks like the repository, models small enough to train, the miniature's run."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before torch is imported, and for the programs that tests start: one thread each, where the study sets no number, and
# threads that have nothing to do sleep. Those that spin slow the other worker's tests many times over.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
if os.environ.get("PYTEST_XDIST_WORKER", "gw0") != "gw0":
    os.nice(4)  # the first worker makes the miniature's run, which takes longest and which many tests wait for

import pytest
from hypothesis import settings
from repository import GIT, PROGRAMS, ROOT
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

UPSTREAM = ROOT.parent / "shared" / "upstream"

settings.register_profile("repeatable", derandomize=True)  # a commit that was green stays green
settings.register_profile("explore", max_examples=2000)  # pytest --hypothesis-profile explore: new examples each time
settings.load_profile("repeatable")

LONGEST = [
    *("test_reproduce", "test_paper_study", "test_chat", "test_desk", "test_report", "test_respond"),
    *("test_chat_page", "test_serving", "test_report_pages", "test_finetune", "test_recording", "test_audit_page"),
]
SHARED = ["test_docs", "test_digests", "test_extending"]  # the miniature's run, which the first module makes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the modules that take longest, and come to those that share the miniature's run when it is there."""
    order = {name: number for number, name in enumerate([*LONGEST, *SHARED])}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that is made once in a session: by the worker that needs it first; the others wait until it is whole."""
    base = factory.getbasetemp()
    return made_in((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name, make)


def made_in(folder: Path, make: Callable[[Path], None]) -> Path:
    """This folder, made now unless it is there and whole."""
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.with_name(f"{folder.name}.whole").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            folder.with_name(f"{folder.name}.whole").touch()
    return folder


@pytest.fixture(scope="session")
def mirror() -> Path:
    """A folder with the public archives, where there is one: MI_LLM_MIRROR, or ../shared/upstream."""
    folder = Path(os.environ.get("MI_LLM_MIRROR", UPSTREAM))
    if not folder.is_dir():
        pytest.skip("no mirror of the public corpora (MI_LLM_MIRROR)")
    return folder


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the bundle's data, code and parameters in it, made the current folder."""
    for name in ("data", "src", "docs", "questions", "CITATION.cff", "licenses.yaml", "pins.yaml"):
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


def committed_state() -> str:
    """The commit that is tested; empty where files differ from it."""
    changed = subprocess.run([*GIT, "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    commit = subprocess.run([*GIT, "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return "" if changed else commit.strip()


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A fresh clone of what is committed, in which `./reproduce.sh mini` has run; what it printed is in `run.txt` beside it.

    Who changes it takes a copy. The next session finds it in pytest's cache if it tests the same commit.
    """

    def make(folder: Path) -> None:
        subprocess.run(["git", "clone", "-q", str(ROOT), str(folder / "bundle")], check=True)
        command = [str(PROGRAMS / "mi-llm"), "reproduce", "mini"]
        done = subprocess.run(command, cwd=folder / "bundle", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        (folder / "run.txt").write_text(done.stdout, encoding="utf-8")

    if not (commit := committed_state()):
        return made_once(tmp_path_factory, "miniature", make) / "bundle"
    kept = request.config.cache.mkdir("miniature")
    for other in kept.iterdir():
        if not other.name.startswith(commit):
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    return made_in(kept / commit, make) / "bundle"


@pytest.fixture
def scored(workspace: Path, study: Study, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The miniature with its report: the tuned replies are the references, the base replies echo the client."""

    def make(folder: Path) -> None:
        make_scored(study)
        report(study)
        shutil.copytree("runs", folder, dirs_exist_ok=True)

    shutil.copytree(made_once(tmp_path_factory, "scored", make), "runs", dirs_exist_ok=True)
    return study


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium for the tests of a module, which open contexts of their own; where there is none, they are skipped."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


@pytest.fixture(scope="session")
def sample_dialogs() -> list[Dialog]:
    """The bundle's own CPsyCounD-format dialogs."""
    return list(READERS["cpsycound"](from_folder(ROOT / "data" / "corpora" / "cpsycound"), Repairs()))


@pytest.fixture(scope="session")
def tokenizer(sample_dialogs: list[Dialog]) -> PreTrainedTokenizerFast:
    """A small tokenizer with the special tokens of all chat formats."""
    return train_tokenizer(sample_dialogs, 900)


@pytest.fixture
def checkpoints(workspace: Path, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained checkpoints of the three architectures, where the miniature looks for its models."""

    def make(folder: Path) -> None:
        untrained(folder, tokenizer)

    return shutil.copytree(made_once(tmp_path_factory, "untrained", make), workspace / "pretrain" / "models")
