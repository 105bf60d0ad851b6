"""Acquire and read: git ids as git has them, sample corpora in upstream's formats, bad input refused by name."""

import json
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from repository import ROOT

from mi_llm import storage
from mi_llm.corpora import acquire, annomi, fetch, release
from mi_llm.corpora.files import File, from_archive, from_folder, natural, write_archive
from mi_llm.corpora.labels import ROLES, split_volley
from mi_llm.corpora.read import READERS, read
from mi_llm.corpora.reading import Repairs
from mi_llm.dialog import Dialog, read_dialogs
from mi_llm.problem import Problem
from mi_llm.study import Study, load

SAMPLES = {"cpsycound": 60, "psydtcorpus": 20, "smilechat": 14, "psy_insight": 14, "efaqa": 14, "annomi": 10}


def dialogs_of(corpus: str, *files: File) -> tuple[list[Dialog], dict[str, int]]:
    repairs = Repairs()
    return list(READERS[corpus](files, repairs)), repairs.counts


ASKED = "您多久没睡好了？"


def as_json(name: str, *entries: object) -> File:
    """A file with one JSON document per line."""
    return File(name, "\n".join(json.dumps(entry) for entry in entries).encode())


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


def test_no_line_of_the_english_dialogs_is_used_twice_and_clients_begin() -> None:
    files = sorted((ROOT / "mini-en/dialogs").glob("*.txt"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(files) == 10
    assert len(lines) == len(set(lines)) == 242
    assert [line.partition(": ")[0] for line in lines] == ["Client", "Counselor"] * 121


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


INSIDE = "我睡不着。支持者：听起来很累。求助者：是的。"


@pytest.mark.parametrize(
    ("corpus", "file"),
    [
        ("cpsycound", File("case_1.txt", f"访客：{INSIDE}\n\n治疗师：您多久没睡好了？".encode())),
        ("smilechat", as_json("0.json", [{"role": "client", "content": INSIDE}, {"role": "Counselor", "content": ASKED}])),
        (
            "psydtcorpus",
            as_json("a.json", [{"messages": [{"role": "user", "content": INSIDE}, {"role": "assistant", "content": ASKED}]}]),
        ),
        (
            "psy_insight",
            as_json(
                "a.json", [{"dialog": [{"speaker": "Seeker", "content": INSIDE}, {"speaker": "Supporter", "content": ASKED}]}]
            ),
        ),
        ("efaqa", as_json("a.jsonl", {"title": INSIDE, "chats": [{"sender": "audience", "value": ASKED}]})),
    ],
)
def test_a_label_inside_a_volley_splits_it(corpus: str, file: File) -> None:
    (dialog,), repairs = dialogs_of(corpus, file)
    volleys = [("client", "我睡不着。"), ("counselor", "听起来很累。"), ("client", "是的。"), ("counselor", ASKED)]
    assert [(turn.role, turn.text) for turn in dialog.turns] == volleys
    assert repairs == {"label inside a volley: split or removed": 1}


@given(st.lists(st.tuples(st.sampled_from(sorted(ROLES)), st.text("天气很好说a,，", min_size=1)), min_size=1))
def test_volleys_that_were_run_together_come_apart_at_their_labels(volleys: list[tuple[str, str]]) -> None:
    label, _ = volleys[0]
    text = "".join(f"{label.upper()}：{words}。" for label, words in volleys)
    assert split_volley(ROLES[label], text) == [(ROLES[label], f"{words}。") for label, words in volleys]


@pytest.mark.parametrize(
    "text",
    [
        "你可以告诉来访者：慢慢来。",
        "我觉得咨询师：很好。",
        "他不懂。（咨询师：我怎么知道？）",
        "咨询师：您好。",
        "你好。求助者：支持者：您好。",
    ],
)
def test_a_dialog_whose_label_leaves_open_who_speaks_is_left_out_and_counted(text: str) -> None:
    clear = as_json("1.json", [{"role": "client", "content": "医生说：“少吃盐。”"}, {"role": "counselor", "content": ASKED}])
    dialogs, repairs = dialogs_of("smilechat", as_json("0.json", [{"role": "client", "content": text}]), clear)
    assert [dialog.turns[0].text for dialog in dialogs] == ["医生说：“少吃盐。”"]
    assert repairs == {"dialog left out: label inside a volley, unclear who speaks": 1}


def test_a_text_file_names_every_speaker() -> None:
    text = "来访者：你好。\n心理咨询师：您好。\n医生说：“少吃盐。”\n1. 深呼吸：慢慢来\n妈妈：他总熬夜。"
    (dialog,), repairs = dialogs_of("cpsycound", File("case_1.txt", text.encode()))
    assert dialog.turns[1].text == "您好。\n医生说：“少吃盐。”\n1. 深呼吸：慢慢来"
    assert (dialog.turns[2].role, dialog.turns[2].text) == ("client", "他总熬夜。")
    assert repairs == {"continuation line joined": 2, "person beside the client taken as the client": 1}


def test_no_two_dialogs_have_one_id(workspace: Path, study: Study) -> None:
    posts = [
        {"md5": name, "title": "睡不着", "chats": [{"sender": "audience", "value": ASKED}]} for name in ("a", "a-2", "a", "a")
    ]
    write_archive(Path("runs/mini/acquire/efaqa/files.tar"), [as_json("a.jsonl", *posts)])
    storage.write_text(Path("runs/mini/acquire/efaqa/manifest.csv"), "path,bytes,blob\na.jsonl,0,x\n")
    read(study, "efaqa")
    assert [dialog.id for dialog in read_dialogs(Path("runs/mini/read/efaqa/dialogs.jsonl"))] == ["a", "a-2", "a-3", "a-4"]
    assert '"id used before, number added",2,a-3' in Path("runs/mini/read/efaqa/repairs.csv").read_text(encoding="utf-8")


def test_a_post_is_what_was_written_and_answered() -> None:
    chats = [{"sender": "audience", "type": "pictureMessage", "value": "p.png"}, {"sender": "owner", "value": "唉"}]
    answered = [*chats, {"sender": "audience", "type": "textMessage", "value": ASKED}]
    posts = [{"title": "睡不着", "description": "三个月了。", "chats": chats} for chats in (chats, answered, [])]
    (dialog,), repairs = dialogs_of("efaqa", as_json("a.jsonl", *posts))
    assert [turn.text for turn in dialog.turns] == ["睡不着\n三个月了。\n唉", ASKED]
    assert repairs == {
        "message that is no text left out": 2,
        "post without a reply left out": 2,
        "turns of one role merged": 2,
    }


@pytest.mark.parametrize(
    ("corpus", "file", "words"),
    [
        ("cpsycound", File("case_1.txt", "来访者：你好".encode("gb18030")), "case_1.txt, byte 0: not UTF-8"),
        ("cpsycound", File("case_1.txt", "你好\n来访者：你好".encode()), "case_1.txt, line 1"),
        ("cpsycound", File("case_1.txt", b""), "no turn with text"),
        ("cpsycound", File("case_1.txt", "来访者：你好\n督导：您好".encode()), "case_1.txt, line 2: the unknown speaker '督导'"),
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
