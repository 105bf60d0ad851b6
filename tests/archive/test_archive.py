"""The archive of a small repository that has in it what the real one has, looked at by independent readers too."""

import contextlib
import csv
import io
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from edits import edit
from repository import ROOT
from rocrate.rocrate import ROCrate
from ruamel.yaml import YAML

from mi_llm import __version__, storage
from mi_llm.archive import container, history, left_out, packages
from mi_llm.archive.build import LISTING, MANIFEST, Item, build, listing, manifest
from mi_llm.archive.outputs import checked, folder_md5
from mi_llm.archive.verify import examine, verify
from mi_llm.compare import LOCK, outputs
from mi_llm.corpora.fetch import sources
from mi_llm.problem import Problem

COPIED = (
    "CITATION.cff", "LICENSE", "README.md", "Dockerfile", "requirements.lock", "licenses.yaml",
    "params.yaml", "pins.yaml", "dvc.yaml", "mini/params.yaml",
)  # fmt: skip
PROGRAM = (
    '#!/bin/sh\ncd "$(dirname "$0")"\necho "$PIP_NO_INDEX $(git status --porcelain) $*"; ls runs/mini/score 2>/dev/null || true\n'
)
PROVENANCE = {"stage": "score", "versions": {"python": "3.11", "mi_llm": "0.1.0", "torch": "2.13.0"}}


def git(folder: Path, *words: str) -> str:
    """Run git in a folder as a person with a name."""
    who = ("-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def hashed(folder: Path) -> str:
    """DVC's hash of a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return folder_md5({path.relative_to(folder).as_posix(): history_md5(path) for path in files})


def history_md5(path: Path) -> str:
    """MD5 of a file, by coreutils."""
    return subprocess.run(["md5sum", path], check=True, capture_output=True, text=True).stdout.split()[0]


def populate(folder: Path) -> None:
    """Fill a folder with a small study that has run, and commit what is tracked of it."""
    for name in COPIED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    for name, text in {
        "reproduce.sh": PROGRAM,
        ".gitignore": "/data\n/runs/\n/dist/\n",
        "store/files/md5/ab/cd": "an object\n",
        "data/cassettes/rate.jsonl": '{"answer": "好"}\n',
        "runs/mini/score/metrics.json": '{"bleu": 1}\n',
        "runs/mini/score/provenance.json": json.dumps(PROVENANCE),
        "runs/mini/report/index.html": "<title>报告</title>\n",
        "runs/mini/report/provenance.json": json.dumps(PROVENANCE),
        "runs/paper/audit/claims.csv": "id,verdict\nT1,reproduced\n",
        "runs/paper/acquire/annomi/files.tar": "texts without a license\n",
    }.items():
        storage.write_text(folder / name, text)
    (folder / "reproduce.sh").chmod(0o755)
    lock = {
        "schema": "2.0",
        "stages": {
            name: {"cmd": name, "outs": [{"path": f"runs/mini/{name}", "md5": hashed(folder / "runs/mini" / name)}]}
            for name in ("report", "score")
        },
    }
    for name, content in {
        "mini/dvc.lock": lock,
        "data.dvc": {"outs": [{"path": "data", "md5": hashed(folder / "data")}]},
    }.items():
        with (folder / name).open("w") as file:
            YAML(typ="safe").dump(content, file)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "A study")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small study."""
    folder = tmp_path_factory.mktemp("repository")
    populate(folder)
    return folder


@pytest.fixture(scope="module")
def archive(repository: Path) -> Path:
    """Its archive."""
    with contextlib.chdir(repository):
        return repository / build(Path("dist"), None)


@pytest.fixture
def copy(repository: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the small study to spoil, made the current folder."""
    folder = tmp_path / "copy"
    shutil.copytree(repository, folder)
    with contextlib.chdir(folder):
        yield folder


def unpacked(archive: Path, folder: Path) -> Path:
    """The archive unpacked by Python, which forgets which files are programs."""
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder)
    return folder


def test_an_archive_is_whole(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(archive) == 0
    assert f"{archive}: whole; SHA-256 {storage.sha256(archive)}" in capsys.readouterr().err
    assert storage.read_text(archive.with_name(f"{archive.name}.sha256")).split() == [storage.sha256(archive), archive.name]
    with zipfile.ZipFile(archive) as opened:
        assert opened.testzip() is None
        names = opened.namelist()
        modes = {info.filename: stat.S_IMODE(info.external_attr >> 16) for info in opened.infolist()}
    assert not [name for name in names if "acquire" in name]  # what may not be passed on
    assert {"runs/paper/audit/claims.csv", "runs/mini/report/index.html", "data/cassettes/rate.jsonl"} <= set(names)
    assert {name for name, mode in modes.items() if mode == 0o755} == {"reproduce.sh", "code/reproduce.sh"}


def test_the_same_commit_gives_the_same_bytes(archive: Path, repository: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(repository), str(clone))
    git(clone, "gc", "--quiet", "--aggressive")
    for name in ("data", "runs"):
        shutil.copytree(repository / name, clone / name, copy_function=shutil.copyfile)
    before = os.umask(0o077)
    try:
        with contextlib.chdir(clone):
            again = build(Path("elsewhere"), None).read_bytes()
    finally:
        os.umask(before)
    assert again == archive.read_bytes()


def test_the_bundle_holds_the_history_of_this_repository(tmp_path: Path) -> None:
    with contextlib.chdir(ROOT):
        if git(ROOT, "rev-parse", "--is-shallow-repository").strip() == "true":
            pytest.skip("a shallow clone has no history to keep")
        commit = git(ROOT, "rev-parse", "HEAD").strip()
        bundle = history.bundle(commit)
    (tmp_path / "code.bundle").write_bytes(bundle)
    git(tmp_path, "clone", "--quiet", "code.bundle", "clone")
    assert git(tmp_path / "clone", "rev-list", "HEAD") == git(ROOT, "rev-list", commit)
    with contextlib.chdir(tmp_path / "clone"):
        assert history.bundle(commit) == bundle


@pytest.mark.parametrize("size", [0, 1, 15, 16, 2047, 2048, 65535, 65536, 200_000])
def test_a_stored_stream_is_what_zlib_reads(size: int) -> None:
    import zlib

    content = random.Random(size).randbytes(size)
    assert zlib.decompress(history.stored(content)) == content


def test_outputs_are_held_against_what_dvc_wrote() -> None:
    names = {"data": YAML(typ="safe").load(storage.read_text(ROOT / "data.dvc"))["outs"][0]["md5"]}
    locked = {path: md5 for path, (_, md5) in outputs(storage.read_text(ROOT / "pretrain/dvc.lock")).items()}
    names |= {path: md5 for path, md5 in locked.items() if (ROOT / path).exists()}
    for path, md5 in names.items():
        assert checked(ROOT / path, md5, "")


def refusal(work: Callable[[], object]) -> str:
    """The Problem that the work ends with."""
    with pytest.raises(Problem) as caught:
        work()
    return str(caught.value)


def test_what_is_not_committed_is_refused(copy: Path) -> None:
    (copy / "notes.txt").write_text("mine")
    (copy / "LICENSE").write_text("none")
    assert "LICENSE and 1 more: changed since the last commit" in refusal(lambda: build(Path("dist"), None))


@pytest.mark.parametrize(
    ("path", "content", "problem_text"),
    [
        ("runs/mini/score/metrics.json", '{"bleu": 2}\n', "runs/mini/score: MD5"),
        ("runs/mini/score/more.json", "{}\n", "runs/mini/score: MD5"),
        ("data/cassettes/rate.jsonl", "\n", "data: MD5"),
    ],
)
def test_outputs_of_another_run_are_refused(copy: Path, path: str, content: str, problem_text: str) -> None:
    (copy / path).write_text(content)
    assert problem_text in refusal(lambda: build(Path("dist"), None))


def test_a_study_that_has_not_run_is_refused(copy: Path) -> None:
    shutil.rmtree(copy / "runs/mini/report")
    assert "runs/mini/report: not here" in refusal(lambda: build(Path("dist"), None))


def test_packages_that_do_not_fit_the_lock_are_refused(copy: Path) -> None:
    edit(copy / "requirements.lock", {"torch==2.13.0": "torch==2.13.1"})
    git(copy, "commit", "--quiet", "--all", "--message", "Another torch")
    assert "torch: 2.13.0, not 2.13.1" in refusal(lambda: build(Path("dist"), None))


def test_a_release_fills_in_its_day_and_its_address(copy: Path) -> None:
    assert not {"date-released", "url"} & YAML(typ="safe").load(storage.read_text(copy / "CITATION.cff")).keys()
    filled = {"# date-released: YYYY-MM-DD": "date-released: 2031-02-03", "# url: https://…": "url: https://example.org/mi-llm"}
    edit(copy / "CITATION.cff", filled)
    git(copy, "commit", "--quiet", "--all", "--message", "A release")
    target = build(Path("dist"), None)
    assert examine(target) == []
    with zipfile.ZipFile(target) as opened:
        assert json.loads(opened.read("zenodo.json"))["metadata"]["publication_date"] == "2031-02-03"


def test_without_the_audit_the_table_says_so(copy: Path) -> None:
    shutil.rmtree(copy / "runs/paper")
    target = build(Path("dist"), None)
    assert examine(target) == []
    with zipfile.ZipFile(target) as opened:
        rows = csv.DictReader(io.StringIO(opened.read("left-out.csv").decode()))
        assert [row["fetch"] for row in rows if row["what"] == "runs/paper/audit"] == ["./reproduce.sh audit --mirror DIR"]


def test_a_committed_audit_is_held_against_its_lock(copy: Path, tmp_path: Path) -> None:
    stages = {
        name: {"cmd": name, "outs": [{"path": f"runs/paper/{name}", "md5": hashed(copy / f"runs/paper/{name}")}]}
        for name in ("audit", "acquire")
    }
    with (copy / "dvc.lock").open("w") as file:
        YAML(typ="safe").dump({"schema": "2.0", "stages": stages}, file)
    git(copy, "add", "dvc.lock")
    git(copy, "commit", "--quiet", "--message", "The audit")
    target = build(Path("dist"), None)
    assert examine(target) == []
    with zipfile.ZipFile(target) as opened:
        rows = list(csv.DictReader(io.StringIO(opened.read("left-out.csv").decode())))
    assert [row["hash"] for row in rows if row["what"] == "runs/paper/acquire"] == [f"md5:{hashed(copy / 'runs/paper/acquire')}"]
    other = forged(target, tmp_path / "other.zip", {"runs/paper/audit/claims.csv": b"id,verdict\n"})
    assert examine(other) == ["runs/paper/audit: not the output that code/dvc.lock names"]
    (copy / "runs/paper/audit/claims.csv").write_text("id,verdict\n")
    assert "runs/paper/audit: MD5" in refusal(lambda: build(Path("dist"), None))


def test_the_lock_that_an_audit_leaves_is_no_change(archive: Path, copy: Path) -> None:
    (copy / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n", encoding="utf-8")
    assert build(Path("dist"), None).read_bytes() == archive.read_bytes()


def test_an_image_may_come_with_it(copy: Path, tmp_path: Path) -> None:
    image = tmp_path / "study.tar"
    image.write_bytes(b"layers" * 1000)
    target = build(Path("dist"), image)
    assert examine(target) == []
    with zipfile.ZipFile(target) as opened:
        assert opened.read("image/study.tar") == image.read_bytes()
        assert "container image" not in opened.read("left-out.csv").decode()


def flipped(archive: Path, index: int, target: Path) -> Path:
    """The archive with one bit of one byte changed."""
    content = bytearray(archive.read_bytes())
    content[index] ^= 1 << (index % 8)
    target.write_bytes(content)
    return target


def structure(archive: Path) -> list[int]:
    """Bytes outside the files' contents: two entries' headers, the directory's entries for them, its end."""
    with zipfile.ZipFile(archive) as opened:
        infos = opened.infolist()
        start = opened.start_dir
    size = archive.stat().st_size
    places = [*range(size - 22, size)]  # end of the central directory
    for info in (infos[0], infos[len(infos) // 2]):
        places += range(info.header_offset, info.header_offset + 30 + len(info.filename))
    places += range(start, start + 46 + len(infos[0].filename))
    places += [info.header_offset for info in infos]
    return places


def test_a_changed_byte_of_the_structure_is_found(archive: Path, tmp_path: Path) -> None:
    missed = [index for index in structure(archive) if not examine(flipped(archive, index, tmp_path / "other.zip"))]
    assert missed == []


def test_a_changed_byte_anywhere_is_found(archive: Path, tmp_path: Path) -> None:
    places = random.Random(20261124).sample(range(archive.stat().st_size), 200)
    missed = [index for index in places if not examine(flipped(archive, index, tmp_path / "other.zip"))]
    assert missed == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content + b"\0",
        lambda content: b"\0" + content,
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content[:-2] + b"\x05\x00hello",  # a comment, of the length that is said
        lambda content: b"",
        lambda content: b"PK\x05\x06" + bytes(18),  # an empty archive
    ],
)
def test_bytes_more_or_less_are_found(archive: Path, tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    other = tmp_path / "other.zip"
    other.write_bytes(spoil(archive.read_bytes()))
    assert examine(other)


def test_another_sum_beside_the_file_is_found(archive: Path, tmp_path: Path) -> None:
    shutil.copy(archive, tmp_path / archive.name)
    (tmp_path / f"{archive.name}.sha256").write_text(f"{'0' * 64}  {archive.name}\n")
    assert examine(tmp_path / archive.name) == [f"{archive.name}.sha256: names another SHA-256 than the file has"]


def forged(archive: Path, target: Path, changes: dict[str, bytes | None]) -> Path:
    """A well-formed archive with other content: lists, checksums and zip structure all fit."""
    with zipfile.ZipFile(archive) as opened:
        rows = {row["path"]: row for row in csv.DictReader(io.StringIO(opened.read(LISTING).decode()))}
        contents: dict[str, bytes | None] = {info.filename: opened.read(info) for info in opened.infolist()}
        contents |= changes
        moment = datetime(*opened.infolist()[0].date_time, tzinfo=UTC)
    items = [
        Item(
            name,
            content,
            rows[name]["license"] if name in rows else "MIT",
            "",
            name in rows and rows[name]["executable"] == "yes",
        )
        for name, content in contents.items()
        if content is not None and name not in (LISTING, MANIFEST)
    ]
    items.append(Item(LISTING, listing(items).encode(), "MIT", ""))
    items.append(Item(MANIFEST, manifest({item.name: item.sha256() for item in items}).encode(), "MIT", ""))
    with target.open("wb") as file:
        container.write(file, (container.Entry(item.name, item.size(), item.executable, item.open) for item in items), moment)
    return target


@pytest.mark.parametrize(
    ("changes", "problem_text"),
    [
        ({"code/LICENSE": b"none"}, "code/LICENSE: not as in code.bundle"),
        ({"code/more.py": b"print()"}, "code/more.py: not as in code.bundle"),
        ({"code.bundle": b"# v2 git bundle\n"}, "code.bundle: "),
        ({"runs/mini/score/metrics.json": b"{}"}, "runs/mini/score: not the output that code/mini/dvc.lock names"),
        ({"CITATION.cff": b"cff-version: 1.2.0\ntitle: x\n"}, "CITATION.cff: $: 'authors' is a required property"),
        ({"sbom.cdx.json": b'{"bomFormat": "CycloneDX", "specVersion": "1.6", "nonsense": 1}'}, "sbom.cdx.json: "),
        ({"sbom.cdx.json": b'{"bomFormat": "CycloneDX", "specVersion": "1.6"}'}, "not the packages of code/requirements.lock"),
        ({"wheels.sha256": b""}, "wheels.sha256: not what packages.csv says"),
        ({"zenodo.json": b"{}"}, "zenodo.json: no title"),
        ({"LICENSE": None}, "LICENSE: described, but not there"),
        ({"../evil": b""}, "'../evil': leads out of the archive"),
        ({"license": b""}, "'license': twice"),
    ],
)
def test_an_archive_that_is_not_what_it_says_is_found(
    archive: Path, tmp_path: Path, changes: dict[str, bytes | None], problem_text: str
) -> None:
    faults = examine(forged(archive, tmp_path / "other.zip", changes))
    assert [fault for fault in faults if problem_text in fault], faults


def test_forging_nothing_changes_nothing(archive: Path, tmp_path: Path) -> None:
    assert examine(forged(archive, tmp_path / "other.zip", {})) == []


@pytest.mark.parametrize("name", ["/etc/passwd", "a/../b", "a//b", "./a", "a\\b", "C:a", "a\nb", "code/.git/config", "报告"])
def test_unsafe_names(name: str) -> None:
    assert container.unsafe(name)


def test_ro_crate_py_reads_it(archive: Path) -> None:
    crate = ROCrate(archive)
    run = crate.dereference("#run")
    assert crate.root_dataset["version"] == __version__
    assert crate.mainEntity.id == "code/dvc.yaml"
    assert "ComputationalWorkflow" in crate.mainEntity.type
    assert run["instrument"].id == "code/dvc.yaml"
    assert {entity.id for entity in run["result"]} == {"runs/mini/report/", "runs/mini/score/"}
    assert [entity["version"] for entity in crate.get_entities() if entity.get("name") == "torch"] == ["2.13.0"]
    assert crate.dereference("code.bundle")["license"]


def test_others_find_no_fault(archive: Path, tmp_path: Path) -> None:
    folder = unpacked(archive, tmp_path / "empty")
    schema = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.citation-file-format"]
    subprocess.run([*schema, "--default-filetype", "yaml", str(folder / "CITATION.cff")], check=True)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str((folder / "sbom.cdx.json").read_text()) is None
    subprocess.run(["sha256sum", "--quiet", "--check", MANIFEST], cwd=folder, check=True)
    rows = list(csv.DictReader((folder / LISTING).open(newline="")))
    assert all((folder / row["path"]).stat().st_size == int(row["bytes"]) for row in rows)


def test_it_runs_from_an_empty_folder(archive: Path, tmp_path: Path) -> None:
    folder = unpacked(archive, tmp_path / "empty")
    (tmp_path / "mirror").mkdir()

    def run(*words: str) -> str:
        program = ["bash", str(folder / "reproduce.sh"), *words]
        done = subprocess.run(
            program, cwd=tmp_path, capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]}
        )
        return done.stdout + (done.stderr if done.returncode else "")

    assert run("mini").split() == ["mini"]  # the code is clean for git
    assert run("audit", "--mirror", "mirror").split() == ["audit", "--mirror", str(tmp_path / "mirror")]
    assert run("mini", "--pull").split() == ["mini", "--pull", "metrics.json", "provenance.json"]
    (folder / "wheels").mkdir()
    (folder / "wheels" / packages.read(packages.shipped())[0].file).write_bytes(b"not it")
    assert "FAILED" in run("mini")
    assert git(folder / "code", "rev-parse", "--abbrev-ref", "HEAD").strip() == "main"


def test_everything_pinned_is_on_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    rows = left_out.corpora() + left_out.weights()
    listed = {row.hash for row in rows}
    for source in sources().values():
        assert {f"git:{blob}" for blob in {**source.paths, **source.optional}.values()} <= listed
    assert "sha256:594b540d36751fa3b199c609617deafc0329050937c0767fdfb2d38b72d8bec9" in listed
    assert all(row.why and row.fetch for row in rows)


def test_what_was_not_quoted_of_the_authors_dialogs_is_on_the_list(archive: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        rows = list(csv.DictReader(io.StringIO(opened.read("left-out.csv").decode())))
    (row,) = [row for row in rows if "except the word that decides the topic" in row["what"]]
    assert row["license"] == "none stated"


def test_the_packages_are_those_of_the_lock() -> None:
    rows = packages.read(packages.shipped())
    assert packages.against(storage.read_text(ROOT / LOCK), rows) == []
    assert {row.file.split("+")[0] for row in rows if row.package == "torch"} >= {"torch-2.13.0"}  # the CPU build
    assert all(len(row.sha256) == 64 and row.license for row in rows)


def test_the_citation_is_of_this_version() -> None:
    assert YAML(typ="safe").load(storage.read_text(ROOT / "CITATION.cff"))["version"] == __version__
