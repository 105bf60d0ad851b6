"""Transport: from a pinned source to its files, by mirror folder or HTTPS, resumable, never trusted before it is verified.

`fetch` yields a source's files one by one and collects in `missing` what is unavailable. A mirror folder
(`MI_LLM_MIRROR`) is looked at first: it holds `<repository>-<commit>.tar.gz` archives and single files by name. A file that an
archive in the mirror lacks may lie there by itself; else the network's archive is asked for it.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath

import requests
from pydantic import BaseModel, ConfigDict
from requests.adapters import HTTPAdapter, Retry
from tqdm import tqdm

from mi_llm import storage
from mi_llm.corpora.files import LARGEST, File, from_archive
from mi_llm.problem import Problem

CHUNK = 1 << 16  # bytes read from the network at a time
TIMEOUT = (10, 60)  # seconds: to connect, between two chunks
GITHUB = "https://codeload.github.com"
EARLIER = "earlier-"  # begins the folder of files that the pinned commit no longer has


class Commit(BaseModel):
    """An earlier commit of a source's repository, and the paths taken from it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    commit: str
    paths: tuple[str, ...]


class Source(BaseModel):
    """One entry of `sources.yaml`; its head explains the keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    repository: str = ""
    commit: str = ""
    paths: dict[str, str] = {}
    optional: dict[str, str] = {}
    earlier: Commit | None = None
    files: dict[str, str] = {}
    license: str
    left_out: str
    citation: str
    obtain: str = ""
    host: str = GITHUB

    def archive(self, commit: str) -> str:
        """The name of a commit's archive in a mirror folder."""
        return f"{PurePosixPath(self.repository).name}-{commit}.tar.gz"

    def address(self, commit: str) -> str:
        """Where a commit's archive is on the network."""
        return f"{self.host}/{self.repository}/tar.gz/{commit}"


@dataclass(frozen=True)
class Missing:
    """An unavailable file: its path, why, and what to do about it."""

    path: str
    why: str
    remedy: str


def sources() -> dict[str, Source]:
    """The pinned public sources, by corpus."""
    pinned = storage.read_yaml(resources.files(__package__) / "sources.yaml")
    return {name: Source.model_validate(entry) for name, entry in pinned.items()}


def source_of(corpus: str) -> Source:
    """The pinned source of a corpus that a study takes from upstream; raises Problem where there is none."""
    if corpus not in (known := sources()):
        remedy = "give it an entry in src/mi_llm/corpora/sources.yaml, or keep its files here"
        raise Problem(f"acquire.upstream: {corpus}", "no pinned source", f"one of {', '.join(known)}", remedy)
    return known[corpus]


def fetch(source: Source, mirror: Path | None, scratch: Path, missing: list[Missing]) -> Iterator[File]:
    """Yield a source's files; downloads rest in `scratch`, where an interrupted one continues. Fills `missing`."""
    if source.commit:
        archive = locate(source.archive(source.commit), source.address(source.commit), mirror, scratch)
        if archive is None:
            missing.append(absent(f"{source.repository} at {source.commit}", source, source.archive(source.commit)))
            return
        names = set()
        for file in files_below(archive, [*source.paths, *source.optional]):
            names.add(file.name)
            yield file
        for path in source.optional:
            if path not in names:
                yield from optional_file(source, path, archive, mirror=mirror, scratch=scratch, missing=missing)
        if source.earlier:
            commit = source.earlier.commit
            archive = locate(source.archive(commit), source.address(commit), mirror, scratch)
            if archive is None:
                path = f"files of {source.repository} at {commit} that later commits dropped"
                missing.append(absent(path, source, source.archive(commit)))
                return
            for file in files_below(archive, source.earlier.paths):
                if file.name not in names:
                    yield File(f"{EARLIER}{commit}/{file.name}", file.content)
    for name, address in source.files.items():
        located = locate(name, address, mirror, scratch)
        if located is None:
            missing.append(absent(name, source, name))
        else:
            yield single_file(located, name)


def optional_file(
    source: Source, path: str, archive: Path, *, mirror: Path | None, scratch: Path, missing: list[Missing]
) -> Iterator[File]:
    """Yield a file that a repository's archive lacks: loose in the mirror folder, else from the network's archive."""
    name = PurePosixPath(path).name
    if mirror is not None and (mirror / name).exists():
        yield single_file(mirror / name, path)
        return
    whole_repository: Path | None = archive
    if archive.parent != scratch:  # an archive of the mirror may be a part of the repository's
        whole_repository = locate(archive.name, source.address(source.commit), None, scratch)
        if whole_repository and (files := list(files_below(whole_repository, [path]))):
            yield from files
            return
    unreachable = "not in the mirror folder, and the network does not respond"
    why = "not in the repository at the pinned commit" if whole_repository else unreachable
    missing.append(Missing(path, why, f"put {name} of github.com/{source.repository} into the folder that MI_LLM_MIRROR names"))


def single_file(path: Path, name: str) -> File:
    """A file on the disk as `File` under `name`; raises Problem if it is larger than `LARGEST`."""
    if path.stat().st_size > LARGEST:
        raise Problem(str(path), f"{path.stat().st_size} bytes", f"at most {LARGEST}", "fetch the file again")
    return File(name, path.read_bytes())


def absent(path: str, source: Source, name: str) -> Missing:
    """The row for something that neither the mirror folder nor the network has."""
    remedy = source.obtain or f"put {name} into the folder that MI_LLM_MIRROR names, or connect to the network"
    return Missing(path, "not in the mirror folder, and unavailable over the network", remedy)


def files_below(archive: Path, paths: Sequence[str]) -> Iterator[File]:
    """Yield the files below `paths` of a repository's archive, named without the archive's top folder."""
    for file in from_archive(archive):
        _, _, name = file.name.partition("/")
        if any(name == path or name.startswith(f"{path}/") for path in paths):
            yield File(name, file.content)


def locate(name: str, address: str, mirror: Path | None, scratch: Path) -> Path | None:
    """The path of a source's archive or file: in the mirror folder, else downloaded; None where neither has it."""
    if mirror is not None and (mirror / name).exists():
        return mirror / name
    if not address:
        return None
    try:
        return download(address, scratch / name)
    except requests.RequestException:
        return None


def download(address: str, path: Path) -> Path:
    """Download to `path`, complete or not at all; an interrupted download continues if the server still has the same file."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    tag = path.with_name(f".{path.name}.etag")
    known_etag = tag.read_text(encoding="utf-8") if tag.exists() else ""
    part = path.with_name(f".{path.name}.{hashlib.sha256(known_etag.encode()).hexdigest()[:8]}.part")
    start = part.stat().st_size if known_etag and part.exists() else 0
    session = requests.Session()
    session.mount("http", HTTPAdapter(max_retries=Retry(total=3, backoff_factor=0.5, status_forcelist=(429, 502, 503, 504))))
    range_headers = {"Range": f"bytes={start}-", "If-Range": known_etag} if start else {}
    with session.get(address, headers={"Accept-Encoding": "identity", **range_headers}, stream=True, timeout=TIMEOUT) as answer:
        answer.raise_for_status()
        resumed = answer.status_code == requests.codes.partial_content
        etag = answer.headers.get("ETag", "")
        if not resumed:
            part.unlink(missing_ok=True)
            start = 0
            storage.write_text(tag, etag)
            part = path.with_name(f".{path.name}.{hashlib.sha256(etag.encode()).hexdigest()[:8]}.part")
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(desc=path.name[:30], total=total, initial=start, unit="B", unit_scale=True) as bar,
        ):
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and part.stat().st_size != total:
        raise requests.ConnectionError(f"{address}: {part.stat().st_size} of {total} bytes came")
    part.replace(path)
    tag.unlink()
    return path
