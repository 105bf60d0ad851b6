"""Acquire and read: git ids as git has them, sample corpora in upstream's formats, bad input refused by name."""

import json
import subprocess
import tarfile
from pathlib import Path

import pytest
from repository import ROOT

from mi_llm import storage
from mi_llm.corpora import acquire, annomi, fetch, release
from mi_llm.corpora.files import File, from_archive, from_folder, natural, write_archive
from mi_llm.corpora.read import READERS, read
from mi_llm.corpora.reading import Repairs
from mi_llm.dialog import Dialog, read_dialogs
from mi_llm.problem import Problem
from mi_llm.study import Study, load

SAMPLES = {"cpsycound": 60, "psydtcorpus": 20, "smilechat": 14, "psy_insight": 14, "efaqa": 14, "annomi": 10}


def dialogs_of(corpus: str, *files: File) -> tuple[list[Dialog], dict[str, int]]:
    repairs = Repairs()
    return list(READERS[corpus](files, repairs)), repairs.counts


@pytest.mark.parametrize("corpus", SAMPLES)
def test_the_real_readers_read_the_sample_corpora(corpus: str) -> None:
    dialogs, _ = dialogs_of(corpus, *from_folder(ROOT / "data" / "corpora" / corpus))
    assert len(dialogs) == SAMPLES[corpus]
    assert len({dialog.id for dialog in dialogs}) == len(dialogs)
    for dialog in dialogs:
        assert 5 <= sum(1 for _ in dialog.rounds()) <= 13
        assert all(before.role != after.role for before, after in zip(dialog.turns, dialog.turns[1:], strict=False))


def test_no_sentence_of_the_sample_dialogs_is_used_twice() -> None:
    seen: dict[str, str] = {}
    for corpus in SAMPLES:
        for dialog in dialogs_of(corpus, *from_folder(ROOT / "data" / "corpora" / corpus))[0]:
            for turn in dialog.turns:
                if len(turn.text) > 12:
                    assert turn.text not in seen, (dialog.id, seen[turn.text])
                    seen[turn.text] = dialog.id


def test_annomi_sample_has_two_transcripts_with_three_annotators() -> None:
    lines = (ROOT / "data/corpora/annomi/AnnoMI-full.csv").read_text(encoding="utf-8").splitlines()
    assert tuple(lines[0].split(",")) == annomi.COLUMNS
    (table,) = from_folder(ROOT / "data/corpora/annomi")
    annotators: dict[str, set[str]] = {}
    import csv

    for row in csv.DictReader(table.text().splitlines()):
        annotators.setdefault(row["transcript_id"], set()).add(row["annotator_id"])
    assert sorted(len(who) for who in annotators.values())[-2:] == [3, 3]


def test_repairs_are_counted_with_an_example() -> None:
    text = "来访者：第一句\r\n继续说\r\n来访者（姚先生）：又一句\n心理咨询师: 回答\n心理咨询师：\n"
    repairs = Repairs()
    (dialog,) = READERS["cpsycound"]([File("Data/case_7.txt", text.encode())], repairs)
    assert [(turn.role, turn.text) for turn in dialog.turns] == [("client", "第一句\n继续说\n又一句"), ("counselor", "回答")]
    assert repairs.counts == {
        "carriage return removed": 1,
        "continuation line joined": 1,
        "qualified label taken as its speaker": 1,
        "half-width colon after a label": 1,
        "turns of one role merged": 1,
        "empty turn dropped": 1,
    }
    assert repairs.examples["continuation line joined"] == "Data/case_7.txt, line 2"


@pytest.mark.parametrize(
    ("corpus", "file", "words"),
    [
        ("cpsycound", File("case_1.txt", "来访者：你好".encode("gb18030")), "case_1.txt, byte 0: not UTF-8"),
        ("cpsycound", File("case_1.txt", "你好\n来访者：你好".encode()), "case_1.txt, line 1"),
        ("cpsycound", File("case_1.txt", b""), "no turn with text"),
        ("smilechat", File("data/0.json", b'[{"role": "client"'), "data/0.json, line 1: not JSON"),
        ("smilechat", File("data/0.json", b'[{"role": "robot", "content": "x"}]'), "data/0.json, turn 1: the speaker 'robot'"),
        ("smilechat", File("data/0.json", b'[{"role": "client", "content": 5}]'), "data/0.json, turn 1: a int as text"),
        ("psydtcorpus", File("a.json", b'[{"id": 1}]'), "a.json, dialog 1: no list `messages`"),
        ("psy_insight", File("a.json", b'{"dialog": []}'), "a.json: a JSON dict"),
        ("efaqa", File("a.utf8", b'{"chats": []}\nnonsense'), "a.utf8, line"),
        ("efaqa", File("a.utf8.gz", b"\x1f\x8bnonsense"), "a.utf8.gz: a damaged gzip file"),
        ("annomi", File("AnnoMI-full.csv", b"a,b\n1,2\n"), "AnnoMI-full.csv, line 1"),
        ("release", File(release.DIALOGS, b'[{"turns": []}]'), "dialog 1: no list `conversations`"),
    ],
)
def test_bad_input_is_refused_by_place(corpus: str, file: File, words: str) -> None:
    with pytest.raises(Problem) as refusal:
        dialogs_of(corpus, file)
    assert words in str(refusal.value)


def test_a_corpus_that_is_not_utf8_leaves_nothing_half_written(workspace: Path, study: Study) -> None:
    bad = [File("CPsyCounD/Data/case_1.txt", "来访者：你好".encode("gb18030"))]
    write_archive(workspace / "runs/mini/acquire/cpsycound/files.tar", bad)
    (workspace / "runs/mini/acquire/cpsycound/manifest.csv").write_text("path,bytes,blob\nx,0,x\n", encoding="utf-8")
    with pytest.raises(Problem, match="not UTF-8"):
        read(study, "cpsycound")
    assert not any((workspace / "runs/mini/read/cpsycound").iterdir())


def test_git_ids_are_those_of_git(tmp_path: Path) -> None:
    contents = {"b.txt": b"two\n", "a/deep/x.json": b"{}", "a.txt": b"", "a/中文.txt": "你好".encode()}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    git("add", "-A")
    blobs = {name: storage.blob_id(content) for name, content in contents.items()}
    assert blobs["b.txt"] == git("hash-object", "b.txt")
    assert acquire.tree_id(blobs) == git("write-tree")


def test_archives_are_equal_bytes_and_come_back(tmp_path: Path) -> None:
    files = [File("case_2.txt", b"2"), File("case_10.txt", "十".encode())]
    for name in ("one.tar", "two.tar"):
        write_archive(tmp_path / name, files)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    assert list(from_archive(tmp_path / "one.tar")) == files
    assert sorted(["case_10", "case_2"], key=natural) == ["case_2", "case_10"]


def test_archives_that_reach_out_are_refused(tmp_path: Path) -> None:
    for name, kind, words in (
        ("../evil.txt", tarfile.REGTYPE, "leads out of the archive"),
        ("/etc/evil", tarfile.REGTYPE, "leads out of the archive"),
        ("link", tarfile.SYMTYPE, "a link or device"),
    ):
        with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as archive:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        with pytest.raises(Problem, match=words):
            list(from_archive(tmp_path / "bad.tar.gz"))


def test_a_torn_archive_is_refused_by_name(workspace: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fetch.sources()["release"]
    content = (mirror / source.archive(source.commit)).read_bytes()
    (workspace / "mirror").mkdir()
    (workspace / "mirror" / source.archive(source.commit)).write_bytes(content[: len(content) // 2])
    monkeypatch.setenv("MI_LLM_MIRROR", "mirror")
    with pytest.raises(Problem, match=r"MI-LLM-79d42c.*damaged archive"):
        acquire.acquire(load(Path("released/params.yaml")), "release")
    assert not list((workspace / "runs/released/acquire").rglob("files.tar"))


def test_a_tampered_file_is_refused_by_name(mirror: Path) -> None:
    source = fetch.sources()["release"]
    blobs = {file.name: storage.blob_id(file.content) for file in fetch.fetch(source, mirror, mirror, [])}
    acquire.verify(source, blobs)
    blobs[release.ROUNDS] = storage.blob_id(b"[]")
    with pytest.raises(Problem, match=r"eval_40\.json.*git id"):
        acquire.verify(source, blobs)


def test_the_authors_release_is_read_whole(workspace: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MI_LLM_MIRROR", str(mirror))
    study = load(Path("released/params.yaml"))
    acquire.acquire(study, "release")
    read(study, "release")
    folder = workspace / "runs/released/read/release"
    assert len(read_dialogs(folder / "dialogs.jsonl")) == 40
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rounds) == 367
    assert len({sample["dialog"] for sample in rounds}) == 40
    assert 'key """" read as instruction' in (folder / "repairs.csv").read_text(encoding="utf-8")
