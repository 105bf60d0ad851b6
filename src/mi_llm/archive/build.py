"""`make archive`: write dist/mi-llm-<version>.zip, from which the study runs again without a network.

Reads git's HEAD (the files must be as committed), the data that data.dvc names, and the finished outputs in runs/, each held
against the committed dvc.lock. Writes the zip, and its SHA-256 beside it. Equal commit and outputs give equal bytes: all times
are the commit's, nothing is compressed, and nothing comes from a network.
"""

import hashlib
import io
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import IO, Any

from jinja2 import Environment, StrictUndefined

from mi_llm import __version__, storage
from mi_llm.archive import container, crate, history, left_out, packages
from mi_llm.archive.outputs import checked
from mi_llm.compare import LOCK, locked_versions, outputs
from mi_llm.git import committed
from mi_llm.problem import Problem

MANIFEST = "manifest-sha256.txt"
LISTING = "files.csv"
EVERY_FILE, EVERY_SUM = "every file with its size and license", "every file's SHA-256, for sha256sum"
DESCRIPTION = "all of this for machines (RO-Crate 1.2, Workflow Run Crate)"
PAPER_RUN = "MIT AND CC-BY-4.0"  # our words and numbers, with values and phrases of the paper (CC BY 4.0)
BUNDLE = "MIT AND CC0-1.0 AND CC-BY-4.0"
PUBLISHED = ("audit", "miti")  # the stages of the paper's study whose outputs hold no upstream text but single words


@dataclass(frozen=True)
class Item:
    """One file of the archive: its name there, its content (bytes, or the file that holds it), license (SPDX), description."""

    name: str
    content: bytes | Path
    license: str
    about: str
    executable: bool = False

    def open(self) -> IO[bytes]:
        """The content, as a binary file open for reading."""
        return io.BytesIO(self.content) if isinstance(self.content, bytes) else self.content.open("rb")

    def size(self) -> int:
        """Size in bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def sha256(self) -> str:
        """SHA-256 of the content."""
        with self.open() as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()  # type: ignore[arg-type]


def code(commit: str) -> list[Item]:
    """The commit's files, as they are in git, below code/."""
    tracked = history.files(commit)
    contents = history.contents([file.blob for file in tracked])
    return [
        Item(f"code/{file.path}", content, code_license(file.path), "", file.executable)
        for file, (_, content) in zip(tracked, contents, strict=True)
    ]


def code_license(path: str) -> str:
    """The license of a file of the repository: README, “License and citation”; the claims list quotes the paper, CC BY 4.0."""
    if path.startswith("store/"):
        return "CC0-1.0"
    return PAPER_RUN if path == "src/mi_llm/paper/claims.csv" else "MIT"


def shipped_data() -> list[Item]:
    """Sample corpora and recorded answers, as data.dvc names them."""
    entry = storage.read_yaml(Path("data.dvc"))["outs"][0]
    return [
        Item(path.as_posix(), path, "CC0-1.0", "") for path in checked(Path(entry["path"]), entry["md5"], "dvc pull data.dvc")
    ]


def finished(lock: str, stages: Sequence[str], license: str, remedy: str) -> list[Item]:
    """The outputs that a committed lock names, of the named stages or of all."""
    return [
        Item(file.as_posix(), file, license, "")
        for path, (stage, md5) in sorted(outputs(lock).items())
        if not stages or stage.split("@", maxsplit=1)[0] in stages
        for file in checked(Path(path), md5, remedy)
    ]


def audit() -> list[Item]:
    """The audit's outputs, if they exist: checked against the committed lock, or taken as they are where there is no lock."""
    folders = [folder for name in PUBLISHED if (folder := Path("runs/paper") / name).is_dir()]
    lock = committed(Path("dvc.lock"))
    if folders and lock is not None:
        return finished(lock, PUBLISHED, PAPER_RUN, "./reproduce.sh audit")
    return [
        Item(file.as_posix(), file, PAPER_RUN, "") for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()
    ]


def zenodo(citation: dict[str, Any], moment: datetime) -> str:
    """The deposit's metadata, in the form that Zenodo's deposit interface takes."""
    metadata = {
        "upload_type": "software",
        "title": citation["title"],
        "description": f"<p>{citation['abstract']}</p>",
        "creators": [{"name": author["name"]} for author in citation["authors"]],
        "version": __version__,
        "publication_date": str(citation.get("date-released", moment.date())),
        "license": citation["license"].lower(),
        "access_right": "open",
        "keywords": citation["keywords"],
        "language": "eng",
        "related_identifiers": [
            {"identifier": "10.2196/89077", "relation": "isSupplementTo", "resource_type": "publication-article"}
        ],
        "notes": "Code MIT; sample corpora, recorded answers and tiny models CC0; what is quoted of the paper CC BY 4.0: "
        "files.csv in the archive gives each file's license.",
    }
    return json.dumps({"metadata": metadata}, ensure_ascii=False, sort_keys=True, indent=2) + "\n"


def not_here(items: list[Item], image: bool) -> str:
    """left-out.csv: upstream texts and weights, and what else this archive does not hold."""
    rows = left_out.corpora() + left_out.weights()
    if lock := committed(Path("dvc.lock")):
        rows += [
            left_out.LeftOut(path, "of its sources", "holds upstream texts", "./reproduce.sh audit --mirror DIR", f"md5:{md5}")
            for path, (stage, md5) in sorted(outputs(lock).items())
            if stage.split("@", maxsplit=1)[0] not in PUBLISHED
        ]
    if any(item.name.startswith("runs/paper/audit/") for item in items):
        rows.append(left_out.quoted())
    if not any(item.name.startswith("runs/paper/") for item in items):
        rows.append(
            left_out.LeftOut(
                "runs/paper/audit", PAPER_RUN, "had not run when this archive was made", "./reproduce.sh audit --mirror DIR", ""
            )
        )
    rows.append(
        left_out.LeftOut("package files", "see packages.csv", "they are on the package index", "pip download", "see packages.csv")
    )
    if not image:
        base = base_image(storage.read_text(Path("Dockerfile")))
        rows.append(
            left_out.LeftOut(
                f"container image on {base}",
                "see NVIDIA's Deep Learning Container License",
                "gigabytes; add it with --image",
                "docker compose build study",
                base.rsplit("@", 1)[1],
            )
        )
    return left_out.table(rows)


def base_image(dockerfile: str) -> str:
    """The image that Dockerfile builds on, with its digest."""
    match = re.search(r"^ARG BASE_IMAGE=(\S+)$", dockerfile, re.MULTILINE)
    if match is None:
        raise Problem("Dockerfile", "no line ARG BASE_IMAGE=…", "the base image, pinned by its digest", "restore the line")
    return match[1]


def listing(items: list[Item]) -> str:
    """files.csv: each file's size, whether it is a program, its license and description; without itself and the manifest."""
    rows = [
        (item.name, item.size(), "yes" if item.executable else "no", item.license, item.about)
        for item in sorted(items, key=lambda item: item.name)
    ]
    return storage.csv_text(["path", "bytes", "executable", "license", "about"], rows)


def manifest(sums: dict[str, str]) -> str:
    """The manifest, as `sha256sum --check` reads it, in order of names; the manifest itself is not in it."""
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))


def results(items: list[Item]) -> list[crate.Result]:
    """The outputs of the miniature's run, with the versions that each recorded."""
    by_name = {item.name: item for item in items}
    recorded = []
    for path, (stage, _) in sorted(outputs(storage.read_text(Path("mini/dvc.lock"))).items()):
        with by_name[f"{path}/provenance.json"].open() as opened:
            recorded.append(crate.Result(f"{path}/", stage, json.load(opened)["versions"]))
    return recorded


FOLDERS = {  # what files.csv and the description say of the parts
    "code/": ("the repository's files at the commit", "MIT"),
    "code/store/": ("DVC's remote: sample corpora, recorded answers, tiny base models, by hash", "CC0-1.0"),
    "data/": ("sample corpora and recorded answers (cassettes), by name", "CC0-1.0"),
}
NAMED = {  # files inside code/ that readers of the description look for
    "code/dvc.yaml": "the pipeline: every stage of the study",
    "code/mini/params.yaml": "the miniature's parameters",
    "code/mini/dvc.lock": "the committed run: hashes of all inputs and outputs",
    "code/requirements.lock": "exact versions of all packages",
    "code/Dockerfile": "the study's container image",
    "code/LICENSE": "license of the code",
    "code/README.md": "how the study is run",
}


def parts(items: list[Item], done: list[crate.Result]) -> list[crate.Part]:
    """The entries of the description: the files at the top, the folders, the outputs of the runs, and the files of `NAMED`."""
    folders = {name: facts for name, facts in FOLDERS.items() if any(item.name.startswith(name) for item in items)}
    folders |= {result.path: (f"output of stage {result.stage}", "CC0-1.0") for result in done}
    for name in PUBLISHED:
        if any(item.name.startswith(f"runs/paper/{name}/") for item in items):
            folders[f"runs/paper/{name}/"] = (f"output of the paper's stage {name}", PAPER_RUN)
    files = [item for item in items if "/" not in item.name or item.name in NAMED or item.name.startswith("image/")]
    described = [crate.Part(name, about, license) for name, (about, license) in folders.items()]
    described += [crate.Part(item.name, item.about or NAMED[item.name], item.license, item.size()) for item in files]
    return sorted(described, key=lambda part: part.path)


def top(origin: crate.Source, items: list[Item], image: Path | None) -> list[Item]:
    """The files at the archive's top that are made for it, without the description and the lists."""
    table = packages.shipped()
    rows = packages.read(table)
    if wrong := packages.against(storage.read_text(LOCK), rows):
        raise Problem(str(packages.TABLE), "; ".join(wrong[:3]), f"the versions of {LOCK}", "run `mi-llm archive packages`")
    program = (resources.files(__package__) / "reproduce.sh").read_bytes()
    bill = packages.bill(rows, origin.commit, origin.moment)
    made = [
        Item("CITATION.cff", Path("CITATION.cff"), "MIT", "how to cite"),
        Item("LICENSE", Path("LICENSE"), "MIT", "license of the code; files.csv has each file's"),
        Item("code.bundle", history.bundle(origin.commit), BUNDLE, "the repository with its history, as a git bundle"),
        Item("left-out.csv", not_here(items, image is not None).encode(), "MIT", "what is left out, why, and how to fetch it"),
        Item("packages.csv", table.encode(), "MIT", "the packages' files with SHA-256 and licenses"),
        Item("reproduce.sh", program, "MIT", "runs the study from here", executable=True),
        Item("sbom.cdx.json", bill.encode(), "MIT", "bill of materials (CycloneDX 1.6)"),
        Item("wheels.sha256", packages.sums(rows).encode(), "MIT", "the packages' SHA-256, for sha256sum"),
        Item("zenodo.json", zenodo(origin.citation, origin.moment).encode(), "MIT", "metadata for a deposit at Zenodo"),
    ]  # fmt: skip
    if image is not None:
        made.append(Item(f"image/{image.name}", image, "LicenseRef-of-its-parts", "the study's container image"))
    return made


def readme(commit: str, items: list[Item]) -> bytes:
    """README.md of the archive."""
    contents = [(name, about) for name, (about, _) in FOLDERS.items()]
    contents += [("runs/", "the finished outputs, the report among them (runs/mini/report/index.html)")]
    contents += sorted((item.name, item.about) for item in items if "/" not in item.name or item.name.startswith("image/"))
    contents += [(crate.METADATA, DESCRIPTION), (LISTING, EVERY_FILE), (MANIFEST, EVERY_SUM)]
    source = (resources.files(__package__) / "readme.md.jinja").read_text(encoding="utf-8")
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False).from_string(source)  # noqa: S701 — Markdown
    return template.render(version=__version__, commit=commit, contents=contents).encode()


def source(commit: str, moment: datetime) -> crate.Source:
    """What the description says of the commit."""
    pipeline = storage.read_yaml(Path("dvc.yaml"))
    return crate.Source(
        commit,
        moment,
        storage.read_yaml(Path("CITATION.cff")),
        base_image(storage.read_text(Path("Dockerfile"))),
        locked_versions(storage.read_text(LOCK))["dvc"],
        {name: entry.get("do", entry)["desc"] for name, entry in pipeline["stages"].items()},
    )


def gather(image: Path | None) -> tuple[list[Item], datetime]:
    """Everything that goes into the archive, and the commit's time."""
    commit, moment = history.head()
    origin = source(commit, moment)
    items = (
        code(commit)
        + shipped_data()
        + finished(storage.read_text(Path("mini/dvc.lock")), (), "CC0-1.0", "./reproduce.sh mini")
        + audit()
    )
    made = top(origin, items, image)
    items += [*made, Item("README.md", readme(commit, made), "MIT", "what this archive is, and how to run it")]
    done = results(items)
    lists = [crate.Part(LISTING, EVERY_FILE, "MIT"), crate.Part(MANIFEST, EVERY_SUM, "MIT")]
    described = crate.describe(parts(items, done) + lists, done, origin)
    items.append(Item(crate.METADATA, described.encode(), "MIT", DESCRIPTION))
    items.append(Item(LISTING, listing(items).encode(), "MIT", EVERY_FILE))
    items.append(Item(MANIFEST, manifest({item.name: item.sha256() for item in items}).encode(), "MIT", EVERY_SUM))
    return items, moment


def build(out: Path, image: Path | None) -> Path:
    """Write the archive into a folder, with its SHA-256 beside it; returns its path."""
    if image is not None and not image.is_file():
        raise Problem(str(image), "no such file", "a container image (docker save, or an OCI tarball)", "correct --image")
    items, moment = gather(image)
    for item in items:
        if fault := container.unsafe(item.name):
            raise Problem(item.name, fault, "a name that every system can unpack", "rename the file")
    target = out / f"mi-llm-{__version__}.zip"
    with storage.replacing(target) as file:
        container.write(file, (container.Entry(item.name, item.size(), item.executable, item.open) for item in items), moment)
    digest = storage.sha256(target)
    storage.write_text(target.with_name(f"{target.name}.sha256"), f"{digest}  {target.name}\n")
    print(f"{target}: {len(items)} files, {target.stat().st_size / 1e6:.1f} MB\nSHA-256 {digest}", file=sys.stderr)
    return target
