"""The disk space of a study: what its outputs take already, and how a base model is stored only once.

DVC keeps a copy of every output in its cache; where the file system can share blocks (reflink), the copy takes no room. The base
models, nearly all that a study holds, become hard links of DVC's copies, on any file system that has them: only `base` and DVC
write them, and both replace files. We link ourselves, file by file and by rename: DVC's `checkout --relink` first removes what it
may then fail to link. All other outputs stay copies: a stage that is run by hand adds lines to some (recorded answers), people
edit others, and through a hard link either would change DVC's copy as well.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dvc.repo import Repo
from dvc_data.hashfile.hash_info import HashInfo

from mi_llm import storage
from mi_llm.compare import lock_of, outputs
from mi_llm.problem import Problem
from mi_llm.study import Study


def repository() -> Repo:
    """DVC's view of this folder, which needs no git."""
    return Repo(config={"core": {"no_scm": True}})


@dataclass(frozen=True)
class Copy:
    """A file of an output, DVC's copy of it, and the MD5 of both."""

    stage: str
    file: Path
    copy: Path
    md5: str


def copies(study: Study, repo: Repo) -> Iterator[Copy]:
    """The files of the outputs that the study's lock names, with their copies in DVC's cache; either may be absent."""
    lock, cache_path = lock_of(study), repo.cache.local.oid_to_path
    try:
        stage_and_digest = outputs(storage.read_text(lock)) if lock.exists() else {}
    except Problem:  # a torn lock, which the run mends
        return
    for output, (stage, digest) in stage_and_digest.items():
        folder = Path(cache_path(digest))
        if digest.endswith(".dir") and folder.exists():
            for entry in storage.read_json(folder):
                yield Copy(stage, Path(output) / entry["relpath"], Path(cache_path(entry["md5"])), entry["md5"])


def held(study: Study) -> float:
    """GB of this disk that the study's outputs and DVC's copies take; a file with several hard links counts once."""
    here, sizes = Path.cwd().stat().st_dev, {}
    paths = [Path(folder) / name for folder, _, names in os.walk(study.folder) for name in names]
    if Path(".dvc").is_dir():
        with repository() as repo:
            paths += [item.copy for item in copies(study, repo)]
    for path in paths:
        try:
            facts = path.lstat()
        except OSError:  # removed by a run that is under way, or not in the cache
            continue
        if stat.S_ISREG(facts.st_mode) and facts.st_dev == here:
            sizes[facts.st_ino] = facts.st_blocks * 512
    return sum(sizes.values()) / 1e9


def link_bases(study: Study) -> None:
    """Make the finished base models hard links of DVC's copies; where the file system cannot, they stay as they are."""
    link = study.folder / "base" / ".link"  # outside the outputs, where a run that is killed here may leave it
    with repository() as repo:
        for item in copies(study, repo):
            if not item.stage.startswith("base@"):
                continue
            link.unlink(missing_ok=True)
            try:
                if item.file.samefile(item.copy):
                    continue
                os.link(item.copy, link)
            except OSError:  # one of them is absent, or the cache is on another disk or in a mount of its own
                continue
            link.replace(item.file)
            repo.state.save(str(item.file.absolute()), repo.cache.local.fs, HashInfo("md5", item.md5))  # else DVC reads it again
