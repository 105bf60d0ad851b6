"""`mi-llm import`: what it says of files, what it writes into a study, and that private dialogs stay on this machine."""

import csv
import shutil
import subprocess
from pathlib import Path

import pytest
from edits import edit
from repository import ROOT

from mi_llm import storage
from mi_llm.construct import screen, split, transcribe
from mi_llm.corpora.acquire import acquire
from mi_llm.corpora.own.importing import import_dialogs, settings_of
from mi_llm.corpora.read import read
from mi_llm.dialog import read_dialogs
from mi_llm.digests import files_of
from mi_llm.problem import Problem
from mi_llm.study import Study, load

PARAMS = Path("mine/params.yaml")
OPENING = ("我晚上总是睡不着", "孩子不听我的话", "我想把烟戒掉", "体检说我血糖高", "我和同事吵架了", "我不想吃降压药")


@pytest.fixture
def mine(workspace: Path) -> Study:
    """A study of one's own in the scratch workspace: the miniature's parameters, with every output kept here."""
    shutil.copytree("mini", "mine")
    edit(PARAMS, {"mini/": "mine/", "runs/mini": "runs/mine", "name: mini": "name: mine"})
    kept = (ROOT / "mini/publish.yaml").read_text(encoding="utf-8").replace('""', "here")
    storage.write_text(Path("mine/publish.yaml"), kept)
    return load(PARAMS)


@pytest.fixture
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six MI dialogs as text outside the repository; the replies of the third share no word with the client."""
    folder = tmp_path_factory.mktemp("private")
    for number, opening in enumerate(OPENING, 1):
        replies = ("您在为健康操心。", "您说呢？") if number == 3 else (f"{opening}，这让您很累。", "您想先试哪一步？")
        lines = (
            f"来访者：{opening}，已经{number}个月了。",
            f"咨询师：{replies[0]}",
            f"来访者：是的，{opening}真难受。",
            f"咨询师：{replies[1]}",
        )
        (folder / f"s{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_import_says_what_it_understood_and_writes_the_entry(
    mine: Study, talks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (talks / "s1.txt").write_bytes("[00:01] 来访者: 我（笑）睡不着。\r\n[00:09] 咨询师: 睡不好很累。".encode("gb18030"))
    before = PARAMS.read_text(encoding="utf-8")
    import_dialogs(mine, [talks], "sleep", {}, check=True, train=False)
    assert PARAMS.read_text(encoding="utf-8") == before
    import_dialogs(mine, [talks], "sleep", {}, check=False, train=True)
    printed = capsys.readouterr().out
    for words in (
        "text with labels: 6",
        "GB18030: 1",
        "来访者",
        "by its name",
        "6, with 11 rounds",
        "Table 3    rounds 1.83 (0.37), characters per volley: counselor",
        "client:    我睡不着。",
        "stage direction left out: 1",
    ):
        assert words in printed
    after = load(PARAMS)
    assert after.corpora["sleep"].model_dump(mode="json") == {
        "path": str(talks),
        "speakers": {"来访者": "client", "咨询师": "counselor"},
        "drop": ["timestamps", "stage-directions"],
    }
    assert (after.transcribe.source, after.transcribe.sample, after.split.test_dialogs) == ("corpus", {"sleep": 6}, 1)
    kept = [line for line in before.splitlines() if "#" in line]
    assert [line for line in PARAMS.read_text(encoding="utf-8").splitlines() if "#" in line] == kept


def test_an_unknown_speaker_is_shown_with_evidence_and_nothing_is_written(mine: Study, talks: Path) -> None:
    (talks / "s1.txt").write_text("来访者：好的。\n咨询师：好。\n督导：停。", encoding="utf-8")
    before = PARAMS.read_text(encoding="utf-8")
    with pytest.raises(Problem, match=r"s1.txt, line 3: the unknown speaker '督导'"):
        import_dialogs(mine, [talks], "sleep", {}, check=False, train=True)
    assert PARAMS.read_text(encoding="utf-8") == before
    import_dialogs(mine, [talks], "sleep", settings_of(["督导=drop"], [], [], private=True), check=False, train=True)
    assert load(PARAMS).corpora["sleep"].speakers["督导"] == "drop"


@pytest.mark.parametrize(
    ("speakers", "columns", "keep", "words"),
    [
        (["督导"], [], [], "--speaker 督导: not understood"),
        (["督导=boss"], [], [], "LABEL=client|counselor|drop|speech"),
        ([], ["who=x"], [], "dialog|turn|speaker|text=HEADING"),
        ([], [], ["laughter"], "timestamps or stage-directions"),
    ],
)
def test_an_option_that_is_not_understood_is_refused(
    speakers: list[str], columns: list[str], keep: list[str], words: str
) -> None:
    with pytest.raises(Problem) as refusal:
        settings_of(speakers, columns, keep, private=True)
    assert words in str(refusal.value)


def test_ones_own_mi_dialogs_are_trained_on_as_they_are(mine: Study, talks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twice = (talks / "s6.txt").read_text(encoding="utf-8")
    (talks / "s6 again.txt").write_text(twice.replace("真难受。", "真难受啊。"), encoding="utf-8")
    (talks / "s2.txt").write_text("咨询师：请坐。\n" + (talks / "s2.txt").read_text(encoding="utf-8"), encoding="utf-8")
    import_dialogs(mine, [talks], "sleep", {}, check=False, train=True)
    edit(PARAMS, {"test_dialogs: 1": "test_dialogs: 5"})
    study = load(PARAMS)
    acquire(study, "sleep")
    read(study, "sleep")
    for stage in (transcribe.transcribe, screen.screen, split.split):
        stage(study)
    rows = {row["dialog"]: row for row in rows_of(study.path("screen", "screening.csv"))}
    assert {row["decision"] for row in rows.values()} == {"keep"}
    assert rows["sleep/s3"]["kinds"] == "irrelevant", "a paraphrase is a remark for a person"
    assert "first volley" in rows["sleep/s2"]["changed"]
    assert "1 dialogs are kept with remarks" in capsys.readouterr().out
    train, test = (read_dialogs(study.path("split", f"{part}.jsonl")) for part in ("train", "test"))
    assert all(dialog.turns[0].role == "client" for dialog in [*train, *test])
    pair, tested = {"sleep/s6", "sleep/s6 again"}, {dialog.id for dialog in test}
    assert len(tested) == 5
    left_out = study.path("split", "left_out.csv")
    if len(pair & tested) == 1:
        assert {row["dialog"] for row in rows_of(left_out)} == pair - tested
        assert not pair & {dialog.id for dialog in train}
    else:
        assert not left_out.exists()
    assert pair & tested, "the seed puts one of the pair into the test"


def test_a_private_corpus_is_refused_where_outputs_or_files_would_be_shared(
    mine: Study, talks: Path, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_text(Path("mini/publish.yaml"), (ROOT / "mini/publish.yaml").read_text(encoding="utf-8"))
    with pytest.raises(Problem, match=r"mini/publish.yaml: corpora, texts, results may go to a remote"):
        import_dialogs(study, [talks], "sleep", {}, check=False, train=False)
    import_dialogs(study, [talks], "sleep", settings_of([], [], [], private=False), check=False, train=False)
    acquire(load(Path("mini/params.yaml")), "sleep")
    subprocess.run(["git", "init", "-q"], check=True)
    shutil.copytree(talks, "talks")
    with pytest.raises(Problem, match="talks: a place that git or a shared remote keeps"):
        import_dialogs(mine, [Path("talks")], "sleep", {}, check=False, train=False)
    storage.write_text(Path(".gitignore"), "/talks\n")
    import_dialogs(mine, [Path("talks")], "sleep", {}, check=False, train=False)
    assert load(PARAMS).corpora["sleep"].path == "talks"
    edit(Path("mine/publish.yaml"), {"results: here": 'results: ""'})
    with pytest.raises(Problem, match="results may go to a remote"):
        acquire(load(PARAMS), "sleep")


def test_files_that_changed_or_are_gone_are_noticed(mine: Study, talks: Path) -> None:
    import_dialogs(mine, [talks], "sleep", {}, check=False, train=False)
    corpus = load(PARAMS).corpora["sleep"]
    first = files_of(corpus)
    (talks / "s1.txt").write_text("来访者：好的。\n咨询师：好。", encoding="utf-8")
    assert len({first, files_of(corpus), files_of(load(PARAMS).corpora["annomi"])}) == 3
    shutil.rmtree(talks)
    with pytest.raises(Problem, match="no such file or folder"):
        acquire(load(PARAMS), "sleep")
