"""A study's finished outputs, checked against their hashes in the committed dvc.lock."""

import hashlib
import json
from pathlib import Path

from mi_llm import storage
from mi_llm.problem import Problem


def folder_md5(files: dict[str, str]) -> str:
    """DVC's hash of a folder, from the MD5 of each file by its path below it: over the sorted list, as DVC writes it."""
    listed = [{"md5": files[path], "relpath": path} for path in sorted(files, key=lambda name: name.split("/"))]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def checked(path: Path, md5: str, remedy: str) -> list[Path]:
    """The files of one output (a folder or a file); raises Problem if they are not the ones that the lock names."""
    if not path.exists():
        raise Problem(str(path), "not here", "the committed run's output", remedy)
    if path.is_dir():
        sums = storage.md5s(path)
        actual_md5, files = folder_md5(sums), [path / name for name in sums]
    else:
        actual_md5, files = storage.md5(path), [path]
    if actual_md5 != md5:
        raise Problem(str(path), f"MD5 {actual_md5}", f"{md5}, as the committed lock has it", remedy)
    return files
