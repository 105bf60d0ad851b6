"""Stage `acquire@corpus`: fetch and verify one corpus, and keep it as one archive.

Reads the bundle's own sample (`data/corpora/<corpus>/`), your own dialogs where the parameters say that they lie, or the source
that `sources.yaml` pins (see `fetch.py`). Writes
`acquire/<corpus>/files.tar`, whose bytes depend on the files alone, `manifest.csv` with the git blob id of each, and
`missing.csv` with what is unavailable, why, and how to get it. A file that is not what its pin says is refused by name.
"""

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from mi_llm import storage
from mi_llm.corpora.fetch import Missing, Source, fetch, source_of
from mi_llm.corpora.files import File, from_folder, natural, write_archive
from mi_llm.corpora.own.private import guard
from mi_llm.corpora.own.understand import files_of
from mi_llm.problem import Problem
from mi_llm.stage import stage
from mi_llm.study import Corpus, Study


def tree_id(blobs: dict[str, str]) -> str:
    """The git tree id of a folder of plain files, from their blob ids by relative path."""
    entries: dict[str, tuple[bytes, str]] = {}
    below: dict[str, dict[str, str]] = {}
    for path, blob in blobs.items():
        head, _, tail = path.partition("/")
        if tail:
            below.setdefault(head, {})[tail] = blob
        else:
            entries[head] = (b"100644", blob)
    entries.update({name: (b"40000", tree_id(content)) for name, content in below.items()})
    # git sorts a folder as if its name ended in a slash
    order = sorted(entries, key=lambda name: name.encode() + (b"/" if name in below else b""))
    body = b"".join(b"%b %b\0%b" % (entries[name][0], name.encode(), bytes.fromhex(entries[name][1])) for name in order)
    return hashlib.sha1(b"tree %d\0%b" % (len(body), body), usedforsecurity=False).hexdigest()


def verify(source: Source, blobs: dict[str, str]) -> None:
    """Check the files' git ids (path to blob id) against the source's pins; raises Problem with the first path that differs."""
    for path, pinned in {**source.paths, **source.optional}.items():
        if path in source.optional and path not in blobs:
            continue
        below = {name.removeprefix(f"{path}/"): blob for name, blob in blobs.items() if name.startswith(f"{path}/")}
        actual = tree_id(below) if below else blobs.get(path, "nothing")
        if actual != pinned:
            raise Problem(
                f"{source.archive(source.commit)}: {path}",
                f"git id {actual}",
                f"{pinned}, as {source.repository} has it at {source.commit}",
                "the copy is damaged or another version: delete it and fetch it again",
            )


def hold_to_first(source: Source, blobs: dict[str, str], record: Path) -> None:
    """Record the git ids of files whose source pins none; raises Problem where a file is not what it was the first time."""
    first = storage.read_json(record) if record.exists() else {}
    unpinned = {name: blobs[name] for name in source.files if name in blobs}
    for name, blob in unpinned.items():
        if first.get(name, blob) != blob:
            remedy = f"put the earlier file into the mirror folder; to take this one from now on, remove its line from {record}"
            raise Problem(name, f"git id {blob}", f"{first[name]}, as it was first acquired here ({record})", remedy)
    if unpinned.keys() - first.keys():
        storage.write_json(record, first | unpinned)


def pack(
    files: Iterable[File], target: Path, title: str, check: Callable[[dict[str, str]], None] = lambda _: None
) -> dict[str, tuple[int, str]]:
    """Write files, given in any order, to a tar archive in natural order; only one file at a time is in memory.

    `check` is given the git blob ids before anything is written. Returns each file's size in bytes and git blob id, in the
    order they came.
    """
    known: dict[str, tuple[int, str]] = {}
    offsets: dict[str, int] = {}
    with tempfile.TemporaryFile(dir=target.parent) as spool:
        for file in tqdm(files, desc=title, unit="file"):
            if file.name in known:
                raise Problem(f"{title}: {file.name}", "the same name twice", "every file once", "fetch the archive again")
            known[file.name], offsets[file.name] = (len(file.content), storage.blob_id(file.content)), spool.tell()
            spool.write(file.content)

        check({name: blob for name, (_, blob) in known.items()})

        def ordered() -> Iterator[File]:
            for name in sorted(known, key=natural):
                spool.seek(offsets[name])
                yield File(name, spool.read(known[name][0]))

        write_archive(target, ordered())
    return known


def acquire(study: Study, corpus: str) -> None:
    """Fetch one corpus; see the module."""
    upstream = corpus in study.acquire.upstream
    folder = Path("data/corpora") / corpus
    settings = study.corpora.get(corpus, Corpus())
    own = settings.paths
    guard(study, corpus, settings)
    with stage(study, "acquire", corpus, [] if upstream or own else [folder]) as out:
        missing: list[Missing] = []
        scratch = out.parent / f".{corpus}"
        if upstream:
            source, mirror = source_of(corpus), os.environ.get("MI_LLM_MIRROR")
            if mirror and not Path(mirror).is_dir():
                raise Problem(mirror, "no such folder", "a folder with the public archives", "correct MI_LLM_MIRROR, or unset it")

            def check(blobs: dict[str, str]) -> None:
                if blobs:
                    verify(source, blobs)
                    hold_to_first(source, blobs, study.beside("acquired.json"))

            files = fetch(source, Path(mirror) if mirror else None, scratch, missing)
            try:
                known = pack(files, out / "files.tar", f"acquire {corpus}", check)
            except Problem:  # a download that fails verification is not kept
                shutil.rmtree(scratch, ignore_errors=True)
                raise
            shutil.rmtree(scratch, ignore_errors=True)
        else:
            files = files_of(settings) if own else from_folder(folder)
            known = pack(files, out / "files.tar", f"acquire {corpus}")
        rows = [{"path": name, "bytes": known[name][0], "blob": known[name][1]} for name in sorted(known, key=natural)]
        storage.write_table(out / "manifest.csv", pd.DataFrame(rows, columns=["path", "bytes", "blob"]))
        storage.write_table(out / "missing.csv", pd.DataFrame(map(vars, missing), columns=["path", "why", "remedy"]))
        numbers = {"files": len(known), "bytes": sum(size for size, _ in known.values()), "missing": len(missing)}
        storage.write_json(out / "metrics.json", numbers)
        for row in missing:
            print(f"acquire@{corpus}: {row.path}: {row.why}; {row.remedy}", file=sys.stderr)
