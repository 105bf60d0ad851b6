"""Your own dialogs stay on this machine: checked before they are read, and before an entry names them.

Files are read where they lie. What is made of them is written below `runs/`, which git ignores, and into this machine's DVC
cache; no push takes it elsewhere while the study's publish.yaml says `here`.
"""

import subprocess
from pathlib import Path

from mi_llm import storage
from mi_llm.problem import Problem
from mi_llm.study import Corpus, Study

HOLDING = ("corpora", "texts", "results")  # the kinds of outputs that hold, or may repeat, what is said
SHARED = ("data", "store", "prompts", "docs", "src", "tests")  # folders that git or a remote keeps


def guard(study: Study, name: str, corpus: Corpus) -> None:
    """Raise Problem if a private corpus would leave this machine with the study's outputs, with git, or with the data."""
    if not corpus.paths or not corpus.private:
        return
    file = study.beside("publish.yaml")
    kept = storage.read_yaml(file).get("publish", {}) if file.exists() else {}
    if shared := [kind for kind in HOLDING if kept.get(kind) != "here"]:
        raise Problem(
            str(file),
            f"{', '.join(shared)} may go to a remote that you share, and the corpus {name} is private",
            f"`here` for {', '.join(HOLDING)}",
            f"use a study of your own (mi-llm new), or set them to `here`; if {name} may be shared, set private: false",
        )
    for path in corpus.paths:
        inside = path.resolve()
        if not inside.is_relative_to(Path.cwd()):
            continue
        relative = inside.relative_to(Path.cwd())
        if relative.parts[:1] in {(folder,) for folder in SHARED} or not ignored(relative):
            raise Problem(
                str(path),
                "a place that git or a shared remote keeps",
                f"a folder outside the repository, or one that git ignores: the corpus {name} is private",
                "move the files out of the repository, or add their folder to .gitignore",
            )


def ignored(path: Path) -> bool:
    """Whether git ignores a path of this folder; where this is no repository, nothing can be committed."""
    if not Path(".git").exists():
        return True
    asked = subprocess.run(["git", "check-ignore", "--quiet", "--", str(path)], check=False, capture_output=True)  # noqa: S603, S607
    return asked.returncode == 0
