"""Stage `acquire@corpus`: bring one corpus here, verified, as one archive.

Reads the bundle's own sample (`data/corpora/<corpus>/`) or the source that `sources.yaml` pins, from a mirror folder that
holds `<repository>-<commit>.tar.gz` (`MI_LLM_MIRROR`). Writes `acquire/<corpus>/files.tar`, whose bytes depend on the
files alone, and `manifest.csv` with the git blob id of each. A file that is not what its pin says is refused by name.
"""

import hashlib
import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict
from ruamel.yaml import YAML
from tqdm import tqdm

from mi_llm import storage
from mi_llm.corpora.files import File, from_archive, from_folder, natural, write_archive
from mi_llm.problem import Problem
from mi_llm.stage import stage
from mi_llm.study import Study


class Source(BaseModel):
    """One entry of `sources.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    repository: str
    commit: str
    paths: dict[str, str]
    licence: str
    citation: str

    @property
    def archive(self) -> str:
        """The archive's file name in a mirror folder; its top folder has the same name without `.tar.gz`."""
        return f"{PurePosixPath(self.repository).name}-{self.commit}.tar.gz"


def sources() -> dict[str, Source]:
    """The pinned public sources, by corpus."""
    text = (resources.files(__package__) / "sources.yaml").read_text(encoding="utf-8")
    return {name: Source.model_validate(entry) for name, entry in YAML(typ="safe").load(text).items()}


def blob_id(content: bytes) -> str:
    """The git blob id: SHA-1 over `blob <size>`, a zero byte and the content."""
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()


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


def from_mirror(source: Source, mirror: Path) -> list[File]:
    """Take a source's pinned paths out of its archive in the mirror folder."""
    top = source.archive.removesuffix(".tar.gz")
    wanted = tuple(source.paths)
    taken = []
    for file in from_archive(mirror / source.archive):
        name = file.name.removeprefix(f"{top}/")
        if any(name == path or name.startswith(f"{path}/") for path in wanted):
            taken.append(File(name, file.content))
    return taken


def verify(source: Source, blobs: dict[str, str], where: str) -> None:
    """Check the files' git ids against the source's pins; the first path that differs is refused by name."""
    for path, pinned in source.paths.items():
        below = {name.removeprefix(f"{path}/"): blob for name, blob in blobs.items() if name.startswith(f"{path}/")}
        found = tree_id(below) if below else blobs.get(path, "nothing")
        if found != pinned:
            raise Problem(
                f"{where}: {path}",
                f"git id {found}",
                f"{pinned}, as {source.repository} has it at {source.commit}",
                "the copy is damaged or another version: delete it and fetch it again",
            )


def acquire(study: Study, corpus: str) -> None:
    """Bring one corpus here; see the module."""
    if corpus in study.acquire.upstream:
        known = sources()
        mirror = os.environ.get("MI_LLM_MIRROR")
        if corpus not in known:
            raise Problem(corpus, "no pinned public source", f"one of {', '.join(known)}", "leave it out of `corpora`")
        if mirror is None:
            raise Problem(
                f"{corpus}: {known[corpus].repository}",
                "no mirror folder named",
                f"a folder with {known[corpus].archive}",
                "set MI_LLM_MIRROR to that folder",
            )
        inputs = [Path(mirror) / known[corpus].archive]
        where = str(inputs[0])
    else:
        inputs = [Path("data/corpora") / corpus]
        where = str(inputs[0])
    with stage(study, "acquire", corpus, inputs) as out:
        if corpus in study.acquire.upstream:
            files = from_mirror(known[corpus], Path(inputs[0]).parent)
        else:
            files = list(from_folder(inputs[0]))
        blobs = {file.name: blob_id(file.content) for file in files}
        if corpus in study.acquire.upstream:
            verify(known[corpus], blobs, where)
        files.sort(key=lambda file: natural(file.name))
        write_archive(out / "files.tar", tqdm(files, desc=f"acquire {corpus}", unit="file"))
        storage.write_text(out / "manifest.csv", "".join(manifest(files, blobs)))
        storage.write_json(out / "metrics.json", {"files": len(files), "bytes": sum(len(file.content) for file in files)})


def manifest(files: list[File], blobs: dict[str, str]) -> Iterator[str]:
    """Lines of `manifest.csv`: path, bytes, git blob id."""
    yield "path,bytes,blob\n"
    for file in files:
        quoted = file.name.replace('"', '""')
        yield f'"{quoted}",{len(file.content)},{blobs[file.name]}\n'
