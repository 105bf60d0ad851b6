"""The draft of a letter to the authors: the committed copy is what the audit writes from the public files."""

import hashlib
import shutil
from pathlib import Path

import pytest
from repository import ROOT

from mi_llm import storage
from mi_llm.audit.audit import audit
from mi_llm.audit.findings import every_sentence
from mi_llm.corpora.acquire import acquire
from mi_llm.corpora.read import read
from mi_llm.study import load

LETTER = ROOT / "docs" / "letter-to-the-authors.md"
BEHIND_IT = ("release", "cpsycound", "annomi")  # the corpora that findings rest on


@pytest.mark.slow
def test_the_committed_letter_is_the_audits(workspace: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MI_LLM_MIRROR", str(mirror))
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, workspace / name)
    whole = load(Path("params.yaml"))
    study = whole.model_copy(update={"acquire": whole.acquire.model_copy(update={"upstream": BEHIND_IT})})
    for corpus in BEHIND_IT:
        acquire(study, corpus)
        read(study, corpus)
    audit(study)
    assert (study.folder / "audit" / "letter.md").read_text(encoding="utf-8") == LETTER.read_text(encoding="utf-8")
    kinds = [finding["kind"] for finding in storage.read_json(study.folder / "audit" / "findings.json")]
    assert sorted(kinds) == sorted(every_sentence())  # on the public files, every kind of finding is there


def test_the_committed_letter_is_the_one_behind_the_committed_reference() -> None:
    files = storage.read_json(ROOT / "reference.json")["runs/paper/audit"]["files"]
    if "letter.md" not in files:
        pytest.skip("the committed reference is older than the letter")
    assert files["letter.md"] == hashlib.md5(LETTER.read_bytes(), usedforsecurity=False).hexdigest()
