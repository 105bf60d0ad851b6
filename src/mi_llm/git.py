"""What git knows of this folder: the commit that is checked out, and the files in it.

A folder without `.git` (a downloaded zip file) has no commit. Where `.git` is there and git fails (it refuses a folder of another
owner), that is a Problem: what git does not say is unknown, and never "nothing changed".
"""

import subprocess
from pathlib import Path

from mi_llm.problem import Problem


def git(*words: str, folder: Path | None = None, stdin: bytes = b"") -> bytes:
    """What a git command prints; raises Problem with git's own message if it fails."""
    try:
        done = subprocess.run(["git", *words], cwd=folder, input=stdin, capture_output=True, check=False)  # noqa: S603, S607 — fixed commands
    except FileNotFoundError:
        raise Problem("git", "no such command", "git, which knows what is committed", "install git") from None
    if done.returncode:
        message = " ".join(done.stderr.decode("utf-8", "replace").split())
        remedy = "do what git says, then run the same command again in the study's own folder"
        raise Problem(f"git {words[0]}", message, "a git repository with a commit", remedy)
    return done.stdout


def head() -> str | None:
    """The commit that is checked out here; None without `.git`, or before the first commit. Raises Problem if git fails."""
    if not Path(".git").exists():
        return None
    return git("rev-parse", "--revs-only", "HEAD").decode("ascii").strip() or None


def committed(path: Path) -> str | None:
    """A file's text in the commit that is checked out; None if it is not there. Raises Problem if git fails."""
    if head() is None or not git("ls-tree", "HEAD", "--", path.as_posix()):
        return None
    return git("show", f"HEAD:{path.as_posix()}").decode("utf-8")
