"""A finished study of private dialogs: git, the shared remote, shipped recordings, and the archive hold none of its sentences."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from edits import edit
from newcomer import ONE_MODEL, TALKS, lines
from repository import PROGRAMS, ROOT
from scored import make_scored

from mi_llm.archive import build
from mi_llm.corpora.own.importing import import_dialogs
from mi_llm.digests import digests
from mi_llm.git import git
from mi_llm.new import new
from mi_llm.report.page import report
from mi_llm.study import load

WHOLE = ("acquire@sleep", "read@sleep", "transcribe", "screen", "split", "score", "blind", "code", "summary", "report")

SECRETS = (
    "".join(("我凌晨坐着发呆，", "谁也没有告诉过")),
    "".join(("我把家里的烟", "都埋在花盆里了")),
)  # in pieces: git holds this file


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A clone with a new study of four private dialogs, run to its report without training, and everything committed."""
    talks, clone = tmp_path_factory.mktemp("talks"), tmp_path_factory.mktemp("private") / "bundle"
    for number, talk in enumerate(TALKS):
        secret = f"来访者：{SECRETS[number]}。\n咨询师：您很难熬。\n" if number < len(SECRETS) else ""
        (talks / f"{number}.txt").write_text(secret + lines(talk), encoding="utf-8")
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    (clone / "data").symlink_to(ROOT / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(clone)
        new("mine", "mini", "")
        import_dialogs(load(Path("mine/params.yaml")), [talks], "sleep", {}, check=False, train=True)
        edit(Path("mine/params.yaml"), ONE_MODEL)
        study = load(Path("mine/params.yaml"))
        digests(study)
        make_scored(study)
        report(study)
        dvc("commit", "--force", *(f"mine/dvc.yaml:{stage}" for stage in WHOLE))
        Path("mine/decisions/sleep_0.txt").write_text(f"来访者：{SECRETS[0]}。\n咨询师：嗯。\n", encoding="utf-8")
        git("add", "--all")
        git("-c", "user.name=Ann", "-c", "user.email=ann@example.org", "commit", "--quiet", "--message", "A study of my own")
        yield clone


def dvc(*words: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(Path.cwd() / "src")}
    done = subprocess.run([str(PROGRAMS / "dvc"), *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def holding(folder: Path) -> list[Path]:
    """The files of a folder that hold a private sentence."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return [path for path in files if any(secret.encode() in path.read_bytes() for secret in SECRETS)]


def test_nothing_that_is_shared_holds_a_private_sentence(finished: Path) -> None:
    quoting = {path.relative_to(finished / "runs/mine").parts[0] for path in holding(finished / "runs/mine")}
    assert {"acquire", "read", "transcribe", "screen", "split"} <= quoting, "the study itself has them"
    assert holding(finished / ".dvc/cache"), "and this machine's cache"
    before = sorted((finished / "store").rglob("*"))
    for target in (["mine/dvc.yaml"], ["--remote", "store", "mine/dvc.yaml"]):
        dvc("push", "--quiet", *target)
    assert sorted((finished / "store").rglob("*")) == before
    assert holding(finished / "store") == []
    objects = git("cat-file", "--batch-all-objects", "--batch")
    assert SECRETS[0].encode() not in objects
    assert SECRETS[1].encode() not in objects
    assert "mine/params.yaml" in git("ls-files").decode()
    archived = [*build.code(git("rev-parse", "HEAD").decode().strip()), *build.shipped_data(), *build.audit()]
    assert [item.name for item in archived if any(secret.encode() in item.open().read() for secret in SECRETS)] == []
    assert [item.name for item in archived if item.name.startswith("runs/mine")] == []
    assert holding(finished / "data") == [], "nor do the recorded answers that are shipped"


def test_every_output_of_a_new_study_stays_on_this_machine(finished: Path) -> None:
    from dvc.repo import Repo

    with Repo(".") as repository:
        stages = [stage for stage in repository.index.stages if stage.relpath == "mine/dvc.yaml"]
        remotes = {out.def_path: out.remote for stage in stages for out in stage.outs if out.use_cache}
    assert len(remotes) > 15
    assert set(remotes.values()) == {"here"}
