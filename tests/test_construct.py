"""Transcribe, screen, split: recorded answers replayed, a person's word above the checks, a test that training never saw."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from author_server import serve

from mi_llm import storage
from mi_llm.construct import llm, screen, split, transcribe
from mi_llm.construct.llm import Cassette, Question
from mi_llm.corpora.acquire import acquire
from mi_llm.corpora.files import from_archive
from mi_llm.corpora.read import READERS, read
from mi_llm.corpora.reading import Repairs
from mi_llm.dialog import Turn, read_dialogs, read_rounds
from mi_llm.problem import Problem
from mi_llm.study import Study, load

SHIPPED = Path("data/cassettes/transcribe.jsonl")


@pytest.fixture
def corpora(workspace: Path, study: Study) -> Path:
    """The two corpora of the sample, acquired and read."""
    for corpus in study.transcribe.sample:
        acquire(study, corpus)
        read(study, corpus)
    return workspace


@pytest.fixture
def author(workspace: Path) -> Iterator[str]:
    """The address of a running model server that answers as `bundle-author`."""
    server = serve(Path("data"), 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_the_miniature_replays_and_training_never_sees_the_test(corpora: Path, study: Study) -> None:
    transcribe.transcribe(study)
    screen.screen(study)
    split.split(study)
    out = corpora / "runs/mini/split"
    train, test = read_dialogs(out / "train.jsonl"), read_dialogs(out / "test.jsonl")
    rounds = read_rounds(out / "test_rounds.jsonl")
    assert (len(train), len(test)) == (60, 12)
    assert len(rounds) >= 50
    assert {sample.dialog for sample in rounds} == {dialog.id for dialog in test}
    assert not {dialog.id for dialog in train} & {dialog.id for dialog in test}
    trained = {turn.text for dialog in train for turn in dialog.turns}
    tested = {turn.text for dialog in test for turn in dialog.turns}
    assert not {text for text in trained & tested if len(text) > 6}
    for sample in rounds:
        assert sample.history == () or sample.history[0].role == "client"
        assert len(sample.history) == 2 * (sample.number - 1)


def test_pretraining_never_saw_the_test(corpora: Path, study: Study, mirror: Path) -> None:
    transcribe.transcribe(study)
    screen.screen(study)
    split.split(study)
    tested = {turn.text for dialog in read_dialogs(corpora / "runs/mini/split/test.jsonl") for turn in dialog.turns}
    (archive,) = mirror.glob("smile-*.tar.gz")
    files = (file for file in from_archive(archive) if "/data/" in file.name)
    for dialog in READERS["smilechat"](files, Repairs()):
        assert not any(turn.text in tested and len(turn.text) > 6 for turn in dialog.turns), dialog.id


def test_replaying_twice_gives_the_same_bytes(corpora: Path, study: Study) -> None:
    written = []
    for _ in range(2):
        transcribe.transcribe(study)
        written.append([path.read_bytes() for path in sorted((corpora / "runs/mini/transcribe").iterdir())])
    assert written[0] == written[1]


def test_a_missing_answer_names_the_dialog_and_how_to_record_it(corpora: Path, study: Study) -> None:
    (corpora / "data").unlink()
    (corpora / "data").mkdir()
    lines = (Path(__file__).parent.parent / SHIPPED).read_text(encoding="utf-8").splitlines(keepends=True)
    (corpora / "data/cassettes").mkdir()
    (corpora / SHIPPED).write_text("".join(lines[:-30]), encoding="utf-8")
    with pytest.raises(Problem) as refusal:
        transcribe.transcribe(study)
    said = str(refusal.value)
    assert "no recorded answer of bundle-author for dialog" in said
    assert "set transcribe.mode to record in mini/params.yaml" in said
    assert not (corpora / "runs/mini/transcribe/sample.jsonl").exists()


def test_recording_from_a_server_gives_what_was_shipped(corpora: Path, author: str) -> None:
    text = Path("mini/params.yaml").read_text(encoding="utf-8")
    text = text.replace("mode: replay", "mode: record").replace("http://127.0.0.1:8808/v1", author)
    Path("mini/params.yaml").write_text(text, encoding="utf-8")
    transcribe.transcribe(load(Path("mini/params.yaml")))
    recorded, shipped = Cassette.open(corpora / "runs/mini/transcribe/cassette.jsonl").good, Cassette.open(SHIPPED).good
    assert len(recorded) == 72
    for key, record in recorded.items():
        assert llm.text_of(record) == llm.text_of(shipped[key])
        assert (record["model"], record["request"]) == ("bundle-author", shipped[key]["request"])


def test_a_torn_last_line_is_cut_off_and_the_rest_kept(tmp_path: Path) -> None:
    lines = shipped_lines()[:3]
    path = tmp_path / "cassette.jsonl"
    path.write_bytes(lines[0] + lines[1] + lines[2][:-40])
    cassette = Cassette.open(path)
    assert len(cassette.good) == 2
    cassette.append(json.loads(lines[2]))
    assert len(Cassette.open(path).good) == 3


def shipped_lines() -> list[bytes]:
    return (Path(__file__).parent.parent / SHIPPED).read_bytes().splitlines(keepends=True)


def test_the_key_is_the_whole_request() -> None:
    request = {"model": "m", "messages": [{"role": "user", "content": "你好"}], "temperature": 1.0}
    key = Question("x", request).key
    assert key == Question("another name", dict(reversed(request.items()))).key
    assert key != Question("x", request | {"temperature": 0.9}).key


def test_a_server_that_never_answers_well_is_said_so(tmp_path: Path, author: str) -> None:
    asked = [Question("dialog 1", {"model": "bundle-author", "messages": [{"role": "user", "content": "nothing known"}]})]
    with pytest.raises(Problem, match="1 of 1 requests have no valid answer; the first is dialog 1: NotFoundError"):
        llm.record(asked, Cassette(tmp_path / "c.jsonl"), base_url=author, concurrency=1, attempts=1, check=transcribe.fault)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ('[{"role": "client", "content": "a"}]', None),
        ('```json\n[{"role": "client", "content": "a"}]\n```', None),
        ("对不起，我不能", "not JSON"),
        ("{}", "not a list of turns"),
        ('[{"role": "therapist", "content": "a"}]', "turn 1 has no role client or counselor"),
        ('[{"role": "client", "content": " "}]', "turn 1 has no text"),
    ],
)
def test_answers_are_checked(answer: str, reason: str | None) -> None:
    found = transcribe.fault(answer)
    assert found is None if reason is None else reason in str(found)


def turns(*said: str) -> list[Turn]:
    roles = {"来": "client", "咨": "counselor"}
    return [Turn(role=roles[text[0]], text=text[1:]) for text in said]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (["来你好", "咨你好", "来嗯", "咨再见"], None),
        (["咨你好", "来你好", "咨好", "来嗯", "咨好"], "does not start with the client"),
        (["来你好", "咨你好", "来嗯", "咨好", "来再见"], "does not end with the counselor"),
        (["来你好", "来你好", "咨好", "来嗯", "咨好"], "roles do not alternate"),
        (["来你好", "咨你好"], "1 rounds, not 2 to 40"),
        (["来你好", "咨你好", "来" + "长" * 700, "咨好"], "a volley of 700 characters, not 1 to 600"),
        (["来hello there", "咨how are you", "来fine", "咨good"], "letters are Chinese"),
        (["来你好", "咨你好", "来我头晕", "咨那就自行停药吧"], "unsafe content: 自行停药"),
        (["来医生，我自行停药了", "咨你停了药", "来嗯", "咨你愿意说说吗"], None),
    ],
)
def test_screening_reasons(study: Study, said: list[str], reason: str | None) -> None:
    found = list(screen.faults(turns(*said), study.screen, screen.unsafe_terms()))
    assert found == [] if reason is None else any(reason in text for text in found)


def test_a_person_overrules_the_checks_and_nothing_is_dropped_silently(corpora: Path, study: Study) -> None:
    transcribe.transcribe(study)
    Path("mini/decisions.csv").write_text(
        "dialog,decision,reason,who,when\ncpsycound/case_3,drop,too smooth,rater A,2026-11-01\n", encoding="utf-8"
    )
    screen.screen(study)
    kept = {dialog.id for dialog in read_dialogs(corpora / "runs/mini/screen/dialogs.jsonl")}
    table = (corpora / "runs/mini/screen/screening.csv").read_text(encoding="utf-8")
    assert "cpsycound/case_3" not in kept
    assert "cpsycound/case_3,drop,too smooth,rater A" in table
    assert storage.read_json(corpora / "runs/mini/screen/metrics.json") == {"screened": 72, "kept": 71, "dropped": 1}
    assert len(table.splitlines()) == 73


def test_a_study_that_wants_a_person_waits_for_one(corpora: Path, study: Study) -> None:
    transcribe.transcribe(study)
    waiting = study.model_copy(update={"screen": study.screen.model_copy(update={"policy": "person"})})
    with pytest.raises(Problem, match="no decision about"):
        screen.screen(waiting)
