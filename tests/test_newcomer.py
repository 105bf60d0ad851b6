"""A newcomer with commands alone: `new`, `import` of talks in every format, and a real run to the report; no source file touched.

Trains a tiny model on a few short dialogs; `tests/report/test_any_study.py` shows the report of such a study in seconds.
"""

import os
import re
import subprocess
from pathlib import Path

import newcomer
import pytest
from edits import edit
from repository import PROGRAMS, ROOT

from mi_llm import storage

CASES = ROOT.parent / "shared" / "cases" / "corpora"
SENTENCE = newcomer.TALKS[0][1][0].strip("。")  # one that no other file of the repository holds but the tests' own
FEWER = {  # so that the run takes a minute: the pipeline is the same
    "  epochs: 4 ": "  epochs: 1 ",
    "  max_new_tokens: 96": "  max_new_tokens: 12",
    "  dialogs: 10 ": "  dialogs: 2 ",
    "  rounds: 10": "  rounds: 2",
    "  resamples: 10000": "  resamples: 200",
}


def mi_llm(clone: Path, *words: object) -> str:
    """What a command prints; it must succeed."""
    environment = os.environ | {"PYTHONPATH": str(clone / "src")}
    command = [str(PROGRAMS / "mi-llm"), *map(str, words)]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def git(clone: Path, *words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=clone, check=True, capture_output=True).stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    return folder


@pytest.mark.slow
def test_a_newcomer_comes_to_a_report_with_commands_alone(clone: Path, tmp_path: Path) -> None:
    mi_llm(clone, "new", "mine", "--title", "My talks")
    brought = newcomer.bring(tmp_path / "talks")
    shared = {f"shared-{source.name}": source for source in sorted(CASES.iterdir())} if CASES.is_dir() else {}
    for name, source in {**brought, **shared}.items():
        assert "nothing is written (--check)" in mi_llm(clone, "import", source, "--study", "mine", "--name", name, "--check")
        mi_llm(clone, "import", source, "--study", "mine", "--name", name, *(["--train"] if name in brought else []))
    edit(clone / "mine/params.yaml", newcomer.ONE_MODEL | FEWER)
    printed = mi_llm(clone, "reproduce", "mine")
    assert "report: runs/mine/report/index.html" in printed
    page = (clone / "runs/mine/report/index.html").read_text(encoding="utf-8")
    assert f"{len(brought) + len(shared)} corpora were read" in page
    numbers = storage.read_json(clone / "runs/mine/score/metrics.json")
    assert set(numbers["tiny-glm4"]) == {"base", "tuned", "tuned minus base"}

    assert re.findall(r"^.. (.*)$", git(clone, "status", "--short").decode(), re.M) == ["mine/"]
    subprocess.run([str(PROGRAMS / "dvc"), "push", "--quiet", "mine/dvc.yaml"], cwd=clone, check=True)
    git(clone, "add", "--all")
    git(clone, "-c", "user.name=Ann", "-c", "user.email=ann@example.org", "commit", "--quiet", "--message", "A study of my own")
    private = SENTENCE.encode()
    tests = git(clone, "grep", "--name-only", SENTENCE, "HEAD").decode().split()
    assert tests == ["HEAD:tests/support/newcomer.py"]
    assert private not in b"".join(path.read_bytes() for path in (clone / "store").rglob("*") if path.is_file())
    assert private in (clone / "runs/mine/split/train.jsonl").read_bytes() + (clone / "runs/mine/split/test.jsonl").read_bytes()
