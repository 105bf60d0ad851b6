"""`mi-llm archive verify FILE`: is this archive complete, is it what it says it is, and is every byte of it checked?

Reads the zip only (and its .sha256, where that lies beside it). The file is written again from its own content and compared
with itself, so that a byte changed anywhere shows: in a file by its checksum, between files by the comparison.
"""

import csv
import hashlib
import io
import json
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import check_jsonschema
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from jsonschema import Draft7Validator

from mi_llm import storage
from mi_llm.archive import container, crate, history, left_out, packages
from mi_llm.archive.build import LISTING, MANIFEST, PUBLISHED, manifest
from mi_llm.archive.outputs import folder_md5
from mi_llm.compare import locked_versions, normal_name, outputs
from mi_llm.git import git
from mi_llm.problem import Problem

FIRST = datetime(1980, 1, 1, tzinfo=UTC)  # the earliest time a zip file can hold
ZENODO = ("upload_type", "title", "description", "creators", "version", "license", "access_right")
SHOWN = 20  # faults printed; more say the same


@dataclass(frozen=True)
class Sums:
    """A file's size in bytes, and its SHA-256, MD5 and git blob id."""

    size: int
    sha256: str
    md5: str
    blob: str


@dataclass(frozen=True)
class Opened:
    """The archive under examination: the open zip file and the checksums of every file in it."""

    zip: zipfile.ZipFile
    sums: dict[str, Sums]

    def text(self, name: str) -> str:
        """A file of the archive as text."""
        return storage.decode(self.zip.read(name), name)


def sums(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Sums:
    """The checksums of one file; zipfile itself checks its CRC."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    blob = hashlib.sha1(b"blob %d\0" % info.file_size, usedforsecurity=False)
    with archive.open(info) as source:
        while chunk := source.read(container.CHUNK):
            for each in (sha256, md5, blob):
                each.update(chunk)
    return Sums(info.file_size, sha256.hexdigest(), md5.hexdigest(), blob.hexdigest())


def names(archive: zipfile.ZipFile) -> list[str]:
    """Faults of the file names: unsafe, twice, or a kind of entry that the archive never has."""
    infos = archive.infolist()
    faults = [f"{info.filename!r}: {fault}" for info in infos if (fault := container.unsafe(info.filename))]
    seen: set[str] = set()
    for info in infos:
        if info.filename.casefold() in seen:
            faults.append(f"{info.filename!r}: twice, for systems that do not tell capitals apart")
        seen.add(info.filename.casefold())
        if info.compress_type != zipfile.ZIP_STORED:
            faults.append(f"{info.filename!r}: compressed")
    return faults


def whole(opened: Opened) -> list[str]:
    """Where the manifest differs from the files."""
    sums_of_files = {name: entry.sha256 for name, entry in opened.sums.items() if name != MANIFEST}
    text = opened.text(MANIFEST)
    if text == manifest(sums_of_files):
        return []
    rows = {line[66:]: line[:64] for line in text.splitlines()}
    faults = [f"{name}: not in {MANIFEST}" for name in sorted(sums_of_files.keys() - rows.keys())]
    faults += [f"{name}: missing, though {MANIFEST} names it" for name in sorted(rows.keys() - sums_of_files.keys())]
    faults += [
        f"{name}: its SHA-256 is not the manifest's" for name in sorted(rows) if sums_of_files.get(name, rows[name]) != rows[name]
    ]
    return faults or [f"{MANIFEST}: not written as `sha256sum` writes it"]


def listed(opened: Opened) -> list[str]:
    """Where files.csv differs from the files."""
    rows = {row["path"]: row for row in csv.DictReader(io.StringIO(opened.text(LISTING)))}
    present = opened.sums.keys() - {LISTING, MANIFEST}
    faults = [f"{name}: not in {LISTING}, or only there" for name in sorted(present ^ rows.keys())]
    faults += [
        f"{name}: {LISTING} has another size"
        for name in sorted(present & rows.keys())
        if int(rows[name]["bytes"]) != opened.sums[name].size
    ]
    return faults + [f"{name}: {LISTING} names no license" for name, row in rows.items() if not row["license"]]


def canonical(opened: Opened, path: Path, moment: datetime) -> list[str]:
    """Where the zip file differs from the same content written again."""
    programs = {row["path"] for row in csv.DictReader(io.StringIO(opened.text(LISTING))) if row["executable"] == "yes"}

    def reader(name: str) -> Callable[[], Any]:
        return lambda: opened.zip.open(name)

    entries = (container.Entry(name, entry.size, name in programs, reader(name)) for name, entry in opened.sums.items())
    with tempfile.TemporaryFile() as again, path.open("rb") as original:
        container.write(again, entries, moment)
        again.seek(0)
        offset = container.difference(original, again)
    return [] if offset is None else [f"byte {offset}: between the files' contents, and not as the archive is written"]


def graph(opened: Opened) -> tuple[dict[str, Any], list[str]]:
    """The description's entities by id, and its faults: unreadable, an entity twice, data that is not there."""
    nodes = json.loads(opened.text(crate.METADATA))["@graph"]
    by_id = {node["@id"]: node for node in nodes}
    faults = [] if len(by_id) == len(nodes) else [f"{crate.METADATA}: an entity twice"]
    named = set(crate.ids(by_id["./"]["hasPart"]))
    for name, node in by_id.items():
        kinds = node["@type"] if isinstance(node["@type"], list) else [node["@type"]]
        if not {"File", "Dataset"} & set(kinds) or name == "./":
            continue
        if name not in named:
            faults.append(f"{name}: described, but no part of the archive")
        if "File" in kinds and name not in opened.sums:
            faults.append(f"{name}: described, but not there")
        if "Dataset" in kinds and not any(other.startswith(name) for other in opened.sums):
            faults.append(f"{name}: described, but no file is in it")
    return by_id, faults + [f"{name}: a part that is not described" for name in sorted(named - by_id.keys())]


def history_of(opened: Opened, commit: str) -> list[str]:
    """Where code.bundle differs from the commit or from code/."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "code.bundle").write_bytes(opened.zip.read("code.bundle"))
        try:
            git("init", "--quiet", "--bare", "git", folder=root)
            git("fetch", "--quiet", "../code.bundle", f"{history.BRANCH}:{history.BRANCH}", folder=root / "git")
            git("fsck", "--strict", "--no-dangling", folder=root / "git")
            bundled_commit = git("rev-parse", history.BRANCH, folder=root / "git").decode("ascii").strip()
            tracked = {f"code/{file.path}": file.blob for file in history.files(bundled_commit, root / "git")}
        except Problem as problem:
            return [f"code.bundle: {problem.found}"]
    faults = [] if bundled_commit == commit else [f"code.bundle: commit {bundled_commit}, not {commit}"]
    blobs = {name: entry.blob for name, entry in opened.sums.items() if name.startswith("code/")}
    return faults + [
        f"{name}: not as in code.bundle" for name in sorted(blobs.keys() | tracked.keys()) if blobs.get(name) != tracked.get(name)
    ]


def finished(opened: Opened) -> list[str]:
    """Which outputs in runs/ are not the ones that the locks in code/ name."""
    faults = []
    for lock, stages in (("code/mini/dvc.lock", ()), ("code/dvc.lock", PUBLISHED)):
        if lock not in opened.sums:
            continue
        for path, (stage, md5) in outputs(opened.text(lock)).items():
            if stages and stage.split("@", maxsplit=1)[0] not in stages:
                continue
            below = {
                name.removeprefix(f"{path}/"): entry.md5 for name, entry in opened.sums.items() if name.startswith(f"{path}/")
            }
            absent = not below and bool(stages)  # the audit may be left out; left-out.csv then says so
            if not absent and folder_md5(below) != md5:
                faults.append(f"{path}: not the output that {lock} names")
    return faults


def bill(opened: Opened) -> list[str]:
    """Where the bill of materials breaks its schema, or the bill or the table of packages differs from the lock."""
    text, lock = opened.text("sbom.cdx.json"), opened.text("code/requirements.lock")
    fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    faults = [f"sbom.cdx.json: {fault}"] if fault else []
    rows = packages.read(opened.text("packages.csv"))
    faults += [f"packages.csv: {line}" for line in packages.against(lock, rows)]
    components = {normal_name(part["name"]): part["version"] for part in json.loads(text).get("components", [])}
    if components != locked_versions(lock):
        faults.append("sbom.cdx.json: not the packages of code/requirements.lock")
    if opened.text("wheels.sha256") != packages.sums(rows):
        faults.append("wheels.sha256: not what packages.csv says")
    return faults


def citation(opened: Opened) -> list[str]:
    """Where CITATION.cff breaks the schema of the Citation File Format 1.2.0, or differs from the one in code/."""
    schema = resources.files(check_jsonschema) / "builtin_schemas" / "vendor" / "citation-file-format.json"
    content = json.loads(json.dumps(storage.parse_yaml(opened.text("CITATION.cff"), "CITATION.cff"), default=str))
    validator = Draft7Validator(json.loads(schema.read_text(encoding="utf-8")))
    faults = [f"CITATION.cff: {error.json_path}: {error.message}" for error in validator.iter_errors(content)]
    if opened.sums["CITATION.cff"] != opened.sums["code/CITATION.cff"]:
        faults.append("CITATION.cff: not the one in code/")
    return faults


def deposit(opened: Opened) -> list[str]:
    """What is missing in the deposit's metadata or in the list of what is left out."""
    metadata = json.loads(opened.text("zenodo.json")).get("metadata", {})
    faults = [f"zenodo.json: no {key}" for key in ZENODO if not metadata.get(key)]
    rows = list(csv.DictReader(io.StringIO(opened.text("left-out.csv"))))
    if list(rows[0]) != list(left_out.LeftOut.__dataclass_fields__) or not all(row["why"] and row["fetch"] for row in rows):
        faults.append("left-out.csv: not a table of what, license, why, fetch, hash")
    return faults


def examine(path: Path) -> list[str]:
    """All faults of an archive, the easiest to understand first; an empty list if it is complete."""
    beside = path.with_name(f"{path.name}.sha256")
    faults = []
    if beside.exists() and storage.read_text(beside) != f"{storage.sha256(path)}  {path.name}\n":
        faults.append(f"{beside.name}: names another SHA-256 than the file has")
    try:
        with zipfile.ZipFile(path) as archive:
            if fault := names(archive):
                return faults + fault
            opened = Opened(archive, {info.filename: sums(archive, info) for info in archive.infolist()})
            if fault := whole(opened) + listed(opened):
                return faults + fault
            by_id, described = graph(opened)
            moment = datetime.fromisoformat(by_id["./"]["datePublished"])
            commit = by_id["code/dvc.yaml"]["version"]
            if fault := described + canonical(opened, path, max(moment, FIRST)):
                return faults + fault
            for check in (finished, bill, citation, deposit):
                faults += check(opened)
            return faults + history_of(opened, commit)
    except Problem as problem:
        return [*faults, str(problem)]
    except Exception as error:  # a changed byte can make zipfile, json or csv say anything
        return [*faults, f"not readable as an archive of this study ({type(error).__name__}: {error})"]


def verify(path: Path) -> int:
    """Print what `examine` finds and the file's SHA-256; returns the exit status, 0 if there is no fault."""
    if not path.is_file():
        raise Problem(str(path), "no such file", "an archive that `make archive` wrote", "correct the path")
    faults = examine(path)
    for fault in faults[:SHOWN]:
        print(f"  {fault}")
    if len(faults) > SHOWN:
        print(f"  and {len(faults) - SHOWN} more")
    print(f"{path}: {'whole' if not faults else 'not whole'}; SHA-256 {storage.sha256(path)}", file=sys.stderr)
    return 1 if faults else 0
