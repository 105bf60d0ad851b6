"""Transport: a real HTTP server, interrupted and resumed downloads, archives of commits, what is unavailable; mutated corpora."""

import csv
import gzip
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

import pytest
import requests
from edits import edit
from hypothesis import example, given, settings
from hypothesis import strategies as st
from repository import ROOT

from mi_llm import storage
from mi_llm.corpora import acquire, fetch
from mi_llm.corpora.files import File, from_archive, from_folder
from mi_llm.corpora.read import READERS, read
from mi_llm.corpora.reading import Repairs
from mi_llm.dialog import read_dialogs
from mi_llm.problem import Problem
from mi_llm.study import Study, load

T = TypeVar("T")


class Files(ThreadingHTTPServer):
    """A server of a few files: understands ranges, has entity tags, and cuts the answer short `cuts` times."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content: dict[str, bytes] = {}
        self.tag = '"one"'
        self.cuts = 0
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Files

    def do_GET(self) -> None:
        requested, wanted = self.headers.get("Range", ""), self.headers.get("If-Range")
        self.server.asked.append(requested)
        content = self.server.content.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(requested.removeprefix("bytes=").removesuffix("-")) if requested and wanted == self.server.tag else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", self.server.tag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        cut = self.server.cuts > 0
        self.server.cuts -= cut
        self.wfile.write(content[start : (start + len(content)) // 2] if cut else content[start:])

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Files]:
    with Files() as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        yield files
        files.shutdown()


def archive(top: str, files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as out:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def source(server: Files, files: dict[str, bytes], **more: object) -> fetch.Source:
    """A repository of a folder `data` at commit `abc`, served as GitHub serves archives."""
    server.content["/some/corpus/tar.gz/abc"] = archive("corpus-abc", {**files, "README": b"not wanted"})
    below = {name.removeprefix("data/"): storage.blob_id(content) for name, content in files.items() if name.startswith("data/")}
    settings = {
        "repository": "some/corpus",
        "commit": "abc",
        "paths": {"data": acquire.tree_id(below)},
        "license": "",
        "left_out": "",
        "citation": "",
    }
    return fetch.Source.model_validate({**settings, "host": server.address, **more})


def test_a_commit_comes_over_http_and_is_verified(server: Files, tmp_path: Path) -> None:
    wanted = source(server, {"data/1.txt": b"one", "data/2.txt": b"two"})
    missing: list[fetch.Missing] = []
    files = list(fetch.fetch(wanted, None, tmp_path, missing))
    assert [file.name for file in files] == ["data/1.txt", "data/2.txt"]
    acquire.verify(wanted, {file.name: storage.blob_id(file.content) for file in files})
    assert missing == []


def test_an_interrupted_download_goes_on_where_it_stopped(server: Files, tmp_path: Path) -> None:
    content = bytes(range(256)) * 20_000
    server.content["/big"] = content
    server.cuts = 1
    with pytest.raises(requests.RequestException):
        fetch.download(f"{server.address}/big", tmp_path / "big")
    assert not (tmp_path / "big").exists()
    assert fetch.download(f"{server.address}/big", tmp_path / "big").read_bytes() == content
    first, second = server.asked
    assert first == ""
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= len(content) // 2
    assert [path.name for path in tmp_path.iterdir()] == ["big"]


def test_a_file_that_changed_meanwhile_is_fetched_anew(server: Files, tmp_path: Path) -> None:
    server.content["/big"] = b"old" * 100_000
    server.cuts = 1
    with pytest.raises(requests.RequestException):
        fetch.download(f"{server.address}/big", tmp_path / "big")
    server.content["/big"], server.tag = b"new" * 90_000, '"two"'
    assert fetch.download(f"{server.address}/big", tmp_path / "big").read_bytes() == b"new" * 90_000


def test_files_that_later_commits_dropped_come_from_the_earlier_one(server: Files, tmp_path: Path) -> None:
    wanted = source(server, {"data/1.txt": b"one"}, earlier={"commit": "old", "paths": ["data"]})
    server.content["/some/corpus/tar.gz/old"] = archive("corpus-old", {"data/1.txt": b"other", "data/9.txt": b"nine"})
    files = list(fetch.fetch(wanted, None, tmp_path, []))
    assert [file.name for file in files] == ["data/1.txt", "earlier-old/data/9.txt"]
    acquire.verify(wanted, {file.name: storage.blob_id(file.content) for file in files})


def test_a_file_that_the_mirrors_archive_lacks_is_taken_loose_or_from_the_network(server: Files, tmp_path: Path) -> None:
    rare = {"extra/rare.json": storage.blob_id(b"rare")}
    wanted = source(server, {"data/1.txt": b"one"}, optional=rare)
    mirror, scratch = tmp_path / "mirror", tmp_path / "scratch"
    mirror.mkdir()
    (mirror / "corpus-abc.tar.gz").write_bytes(archive("corpus-abc", {"data/1.txt": b"one"}))

    def fetched() -> tuple[dict[str, bytes], list[fetch.Missing]]:
        missing: list[fetch.Missing] = []
        files = {file.name: file.content for file in fetch.fetch(wanted, mirror, scratch, missing)}
        acquire.verify(wanted, {name: storage.blob_id(content) for name, content in files.items()})
        return files, missing

    files, (row,) = fetched()
    assert list(files) == ["data/1.txt"]
    assert (row.path, row.why) == ("extra/rare.json", "not in the repository at the pinned commit")
    assert "put rare.json of github.com/some/corpus into the folder that MI_LLM_MIRROR names" in row.remedy
    shutil.rmtree(scratch)
    server.content["/some/corpus/tar.gz/abc"] = archive("corpus-abc", {"data/1.txt": b"one", "extra/rare.json": b"rare"})
    assert fetched() == ({"data/1.txt": b"one", "extra/rare.json": b"rare"}, [])
    server.content.clear()
    shutil.rmtree(scratch)
    assert fetched()[1][0].why == "not in the mirror folder, and the network does not respond"
    (mirror / "rare.json").write_bytes(b"rare")
    assert fetched() == ({"data/1.txt": b"one", "extra/rare.json": b"rare"}, [])
    (mirror / "rare.json").write_bytes(b"other")
    with pytest.raises(Problem, match=r"rare\.json: git id"):
        fetched()


def test_a_tampered_download_is_refused_and_not_kept(server: Files, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = source(server, {"data/1.txt": b"one"})
    server.content["/some/corpus/tar.gz/abc"] = archive("corpus-abc", {"data/1.txt": b"0ne"})
    monkeypatch.setattr(acquire, "source_of", lambda _: wanted)
    monkeypatch.delenv("MI_LLM_MIRROR", raising=False)
    with pytest.raises(Problem, match=r"corpus-abc\.tar\.gz: data: git id"):
        acquire.acquire(load(Path("released/params.yaml")), "release")
    assert not list((workspace / "runs/released/acquire").rglob("*.tar*"))


def test_what_cannot_be_had_is_a_row_and_no_dialogs(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(Path("mini/params.yaml"), {"upstream: []": "upstream: [efaqa]"})
    monkeypatch.delenv("MI_LLM_MIRROR", raising=False)
    study = load(Path("mini/params.yaml"))
    acquire.acquire(study, "efaqa")
    (row,) = csv.DictReader((study.folder / "acquire/efaqa/missing.csv").read_text(encoding="utf-8").splitlines())
    assert row["path"] == "efaqa-corpus-zh.utf8.gz"
    assert "buy a license" in row["remedy"]
    read(study, "efaqa")
    assert read_dialogs(study.folder / "read/efaqa/dialogs.jsonl") == []


def test_a_bought_file_is_taken_from_the_mirror_folder(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(Path("mini/params.yaml"), {"upstream: []": "upstream: [efaqa]"})
    (sample,) = (file for file in from_folder(ROOT / "data/corpora/efaqa") if "utf8" in file.name or file.name.endswith("jsonl"))
    content = sample.content if sample.name.endswith(".gz") else gzip.compress(sample.content, mtime=0)
    (workspace / "mine").mkdir()
    (workspace / "mine/efaqa-corpus-zh.utf8.gz").write_bytes(content)
    monkeypatch.setenv("MI_LLM_MIRROR", "mine")
    study = load(Path("mini/params.yaml"))
    acquire.acquire(study, "efaqa")
    read(study, "efaqa")
    assert len(read_dialogs(study.folder / "read/efaqa/dialogs.jsonl")) == 14


def test_all_cases_of_cpsycound_are_obtainable(study: Study) -> None:
    wanted = fetch.sources()["cpsycound"]
    assert wanted.earlier is not None
    text = "来访者：我累了。\n心理咨询师：你很累。".encode()
    files = [File("CPsyCounD/Data/case_1.txt", text), File("earlier-0067411/CPsyCounD/Data/case_1900.txt", text)]
    assert [dialog.id for dialog in READERS["cpsycound"](files, Repairs())] == ["case_1", "case_1900"]


SAMPLES = {
    "cpsycound": "case_1.txt", "psydtcorpus": ".json", "smilechat": ".json", "psy_insight": ".json", "efaqa": "utf8",
    "annomi": "AnnoMI-full.csv",
}  # fmt: skip


def sample(corpus: str) -> File:
    return next(file for file in from_folder(ROOT / "data/corpora" / corpus) if SAMPLES[corpus] in file.name)


def mutate(content: bytes, how: str, share: float, junk: bytes) -> bytes:
    """One of the ways in which files go wrong."""
    at = int(share * len(content))
    lines = content.split(b"\n")
    line = int(share * (len(lines) - 1))
    return {
        "cut": lambda: content[:at],
        "junk": lambda: content[:at] + junk + content[at:],
        "nul": lambda: content[:at] + b"\0" + content[at:],
        "bom": lambda: b"\xef\xbb\xbf" + content,
        "crlf": lambda: content.replace(b"\n", b"\r\n"),
        "cr": lambda: content.replace(b"\n", b"\r", line),
        "label": lambda: content.replace("来访者".encode(), b"", 1 + line % 3).replace(b'"role"', b'"rolle"', 1 + line % 2),
        "type": lambda: content.replace(b'"content": "', b'"content": 5, "was": "', 1 + line % 2).replace(b"client", b"null", 1),
        "line": lambda: b"\n".join(lines[:line] + lines[line + 1 :]),
        "list": lambda: b"{" + content.strip().removeprefix(b"[").removesuffix(b"]") + b"}",
        "half": lambda: content.replace(b'"content": "', b'"content": "\\ud83d', 1 + line % 2),
        "deep": lambda: b"[" * 5000 + content,
        "number": lambda: content.replace(b'"', b"9" * 6000, 1),
    }[how]()


HOW = ("cut", "junk", "nul", "bom", "crlf", "cr", "label", "type", "line", "list", "half", "deep", "number")


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(SAMPLES)),
    st.lists(st.sampled_from(HOW), min_size=1, max_size=3),
    st.floats(0, 1),
    st.binary(max_size=8),
)
def test_a_mutated_corpus_gives_dialogs_or_one_clear_error(corpus: str, ways: list[str], share: float, junk: bytes) -> None:
    file, repairs = sample(corpus), Repairs()
    content = gzip.decompress(file.content) if file.name.endswith(".gz") else file.content
    for how in ways:
        content = mutate(content, how, share, junk)
    name = file.name.removesuffix(".gz")
    dialogs, problem = outcome(lambda: list(READERS[corpus]([File(name, content)], repairs)))
    if problem:
        assert problem.where
        assert problem.remedy
        assert len(str(problem)) < 2000
    for dialog in dialogs:
        assert dialog.turns
        assert all(turn.text.strip() and "\0" not in turn.text and "\r" not in turn.text for turn in dialog.turns)
        json.dumps(dialog.model_dump(), ensure_ascii=False).encode("utf-8")


def outcome(run: Callable[[], list[T]]) -> tuple[list[T], Problem | None]:
    """What came, or the problem that a user would see; anything else is a fault of ours and fails the test."""
    try:
        return run(), None
    except Problem as problem:
        return [], problem


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 400), st.integers(0, 255), st.booleans())
@example(3, 0, True)  # cut inside the gzip header
def test_a_damaged_archive_gives_its_files_or_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int, cut: bool
) -> None:
    files = {f"data/{number}.txt": bytes([number]) * 900 for number in range(6)}
    content = bytearray(archive("top", files))
    at = min(at, len(content) - 1)
    content = content[:at] if cut else content[:at] + bytes([value]) + content[at + 1 :]
    path = tmp_path_factory.mktemp("damaged") / "a.tar.gz"
    path.write_bytes(content)
    members, problem = outcome(lambda: list(from_archive(path)))
    assert problem is None or str(path) in str(problem)
    assert all(len(file.content) <= 900 for file in members)


def test_an_archive_that_unpacks_too_large_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz") as out:
        member = tarfile.TarInfo("top/bomb")
        member.size = 300 << 20
        out.addfile(member, io.BytesIO(b"\0" * member.size))
    with pytest.raises(Problem, match="at most"):
        list(from_archive(tmp_path / "bomb.tar.gz"))


def packed(path: Path, member: tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w:gz", format=form, encoding="utf-8", errors="surrogateescape") as out:
        member.size = 1
        out.addfile(member, io.BytesIO(b"x"))
    return path


def test_headers_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    attributes = tarfile.TarInfo("top/a")
    attributes.pax_headers = {"comment": "x" * 100_000}
    with pytest.raises(Problem, match=r"a damaged archive \(a header of 100\d\d\d bytes"):
        list(from_archive(packed(tmp_path / "pax.tar.gz", attributes)))
    long = packed(tmp_path / "long.tar.gz", tarfile.TarInfo("top/" + "b" * 100_000), tarfile.GNU_FORMAT)
    with pytest.raises(Problem, match=r"a damaged archive \(a header of 100\d\d\d bytes"):
        list(from_archive(long))
    holes = tarfile.TarInfo("top/a")  # the list of the holes begins the file's content; the first number is how many there are
    holes.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1"}
    with pytest.raises(Problem, match=r"a damaged archive \(a file with holes"):
        list(from_archive(packed(tmp_path / "holes.tar.gz", holes)))


@pytest.mark.parametrize("name", ["top/" + "a/" * 200 + "b", "top/\udcff.txt", "top/\x1b[31m.txt", "top/" + "b" * 2000])
def test_a_name_that_no_corpus_has_is_refused(tmp_path: Path, name: str) -> None:
    form = tarfile.GNU_FORMAT if "\udcff" in name else tarfile.PAX_FORMAT
    with pytest.raises(Problem, match="expected: names in UTF-8"):
        list(from_archive(packed(tmp_path / "a.tar.gz", tarfile.TarInfo(name), form)))


def test_an_archive_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tar.gz").write_bytes(archive("top", {f"{number}": b"" for number in range(12)}))
    monkeypatch.setattr("mi_llm.corpora.files.MOST_FILES", 10)
    with pytest.raises(Problem, match="at most 10 files"):
        list(from_archive(tmp_path / "a.tar.gz"))


def test_a_file_without_a_pin_must_stay_what_it_was_the_first_time(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(Path("mini/params.yaml"), {"upstream: []": "upstream: [psydtcorpus]"})
    name, mirror = "PsyDTCorpus_train_mulit_turn_packing.json", Path("mirror")
    mirror.mkdir()
    monkeypatch.setenv("MI_LLM_MIRROR", "mirror")
    study = load(Path("mini/params.yaml"))
    (mirror / name).write_bytes(b"[1]")
    acquire.acquire(study, "psydtcorpus")
    acquire.acquire(study, "psydtcorpus")
    assert storage.read_json(Path("mini/acquired.json")) == {name: storage.blob_id(b"[1]")}
    shutil.rmtree("runs")
    (mirror / name).write_bytes(b"[2]")
    with pytest.raises(Problem, match=r"(?s)as it was first acquired here \(mini/acquired\.json\).*remove its line"):
        acquire.acquire(study, "psydtcorpus")
    assert not list(Path("runs").rglob("*.tar"))
    Path("mini/acquired.json").unlink()
    acquire.acquire(study, "psydtcorpus")


def test_a_link_in_a_folder_of_samples_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link.txt").symlink_to("/etc/hostname")
    with pytest.raises(Problem, match="a link"):
        list(from_folder(tmp_path))
