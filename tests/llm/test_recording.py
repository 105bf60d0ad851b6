"""Asking language models: real HTTP servers that misbehave, killed processes, budgets, cassettes that people touch."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from edits import edit, edited
from repository import PROGRAMS, ROOT

from mi_llm.construct import transcribe
from mi_llm.dialog import Dialog, Turn, write_dialogs
from mi_llm.llm import ask, batch, record
from mi_llm.llm.cassette import Cassette, Question, key_of, merge, sealed, text_of, verify
from mi_llm.problem import Problem
from mi_llm.study import Budget, Price, Study, load

SERVER = ROOT / "tests" / "support" / "model_server.py"
KEY = "sk-planted-0123456789abcdef"
Start = Callable[..., str]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start servers of `model_server.py`, each a process of its own; gives the base URL. Their log is `server.jsonl`."""
    running = []

    def go(**options: float | str) -> str:
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, str(SERVER), "--log", str(tmp_path / "server.jsonl"), *words]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.append(server)
        assert server.stdout is not None
        return f"http://127.0.0.1:{int(server.stdout.readline())}/v1"

    yield go
    for server in running:
        server.kill()
        server.wait()


def served(folder: Path) -> list[dict[str, Any]]:
    """The server's log."""
    return [json.loads(line) for line in (folder / "server.jsonl").read_text().splitlines()]


def asked_as(question: Question) -> str:
    """How the SDK's body of a question is named in the server's log."""
    body = json.dumps(question.request, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(body.encode()).hexdigest()


@pytest.fixture
def two_hundred(workspace: Path, sample_dialogs: list[Dialog]) -> Callable[[str], Study]:
    """The miniature with 200 dialogs to transcribe, and a function that points it at a server."""

    def variant(number: int, corpus: str) -> Dialog:
        dialog = sample_dialogs[number % len(sample_dialogs)]
        turns = [Turn(role=turn.role, text=f"{turn.text}（{corpus}，{number}）。") for turn in dialog.turns]
        return Dialog(id=str(number), source=corpus, turns=tuple(turns[: len(turns) // 2 * 2]))

    for corpus, count in (("cpsycound", 150), ("psydtcorpus", 50)):
        write_dialogs(workspace / "runs/mini/read" / corpus / "dialogs.jsonl", [variant(n, corpus) for n in range(count)])

    def point(url: str) -> Study:
        samples = {"cpsycound: 54": "cpsycound: 150", "psydtcorpus: 18": "psydtcorpus: 50"}
        server = {"http://127.0.0.1:8808/v1": url, "model: bundle-author": "model: some-model", "timeout_s: 300": "timeout_s: 1"}
        limits = {"attempts: 3": "attempts: 8", "requests: 1000": "requests: 100000"}
        edit(Path("mini/params.yaml"), samples | server | limits)
        return load(Path("mini/params.yaml"))

    return point


def command(*words: str) -> list[str]:
    return [str(PROGRAMS / "mi-llm"), "transcribe", "--mode", "record", "--yes", *words]


def test_a_server_that_fails_three_times_in_ten_is_asked_until_all_is_well_and_no_more(
    start: Start, two_hundred: Callable[[str], Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = two_hundred(start(faults=0.3, delay=0.01, key=KEY))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    done = subprocess.run(command(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    log = served(tmp_path)
    kinds = Counter(entry["answered"] for entry in log)
    assert set(kinds) == {"good", "429", "500", "timeout", "cut", "truncated", "refusal", "roles", "turns"}
    assert kinds["good"] == 200
    well = Counter(entry["asked"] for entry in log if entry["answered"] == "good")
    assert set(well.values()) == {1}
    cassette = Cassette.open(study.folder / "transcribe/cassette.jsonl")
    problems = Counter(known["problem"] for known in cassette.records)
    assert problems[None] == 200
    assert sum(problems.values()) == sum(kinds[kind] for kind in ("good", "truncated", "refusal", "roles", "turns"))
    assert cassette.records[0]["model"] == "some-model-2026"
    assert cassette.records[0]["prompt"]["name"] == "src/mi_llm/language/zh/prompts/transcribe.jinja"
    assert len((study.folder / "transcribe/transcribed.jsonl").read_text().splitlines()) == 200
    everything = (
        done.stdout
        + done.stderr
        + "".join(path.read_text(errors="replace") for path in Path("runs").rglob("*") if path.is_file())
    )
    assert KEY not in everything
    assert "planted" not in everything
    assert "you sent Bearer [removed]" in everything


@pytest.mark.slow
def test_killed_so_many_times_nothing_that_was_kept_is_asked_again(
    start: Start, two_hundred: Callable[[str], Study], tmp_path: Path
) -> None:
    study = two_hundred(start(faults=0.3, delay=0.15))
    path, chance = study.folder / "transcribe/cassette.jsonl", random.Random(3)
    names = {question.key: asked_as(question) for question in transcribe.questions(study)}
    kills, runs = 0, []
    for _ in range(20):
        runs.append((time.time(), set(Cassette.open(path).good)))
        before = len(served(tmp_path))
        run = subprocess.Popen(command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while run.poll() is None and len(served(tmp_path)) == before:
            time.sleep(0.01)
        time.sleep(chance.random() * 0.4)
        if run.poll() is None:
            os.kill(run.pid, signal.SIGKILL)
            kills += 1
        run.wait()
    subprocess.run(command(), check=True, capture_output=True)
    for began, kept in runs:
        assert not {names[key] for key in kept} & {entry["asked"] for entry in served(tmp_path) if entry["came"] >= began}
    assert kills >= 15
    assert len(Cassette.open(path).good) == 200
    well = Counter(entry["asked"] for entry in served(tmp_path) if entry["answered"] == "good")
    assert len(well) == 200
    assert sum(well.values()) - 200 <= kills * study.llm.concurrency  # answers that were on their way when the process died
    assert verify(path) == []


def test_two_processes_share_the_work_without_asking_twice(
    start: Start, two_hundred: Callable[[str], Study], tmp_path: Path
) -> None:
    study = two_hundred(start(delay=0.02))
    runs = [subprocess.Popen(command(), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert "another process records into" in "".join(errors)
    assert Counter(entry["answered"] for entry in served(tmp_path)) == {"good": 200}
    assert len(Cassette.open(study.folder / "transcribe/cassette.jsonl").records) == 200


def small(study: Study, **changes: object) -> Study:
    """The study with other settings of `llm`."""
    return study.model_copy(update={"llm": study.llm.model_copy(update=changes)})


@pytest.mark.parametrize(
    ("budget", "limit"),
    [
        (Budget(requests=30, tokens=10**9, usd=1e9), "requests: 30 of 30"),
        (Budget(requests=10**6, tokens=100_000, usd=1e9), "tokens: "),
        (Budget(requests=10**6, tokens=5_000, usd=1e9), "tokens: "),  # less than one round of concurrent answers
        (Budget(requests=10**6, tokens=10**9, usd=0.05), "US dollars: 0.0"),
    ],
)
def test_a_budget_stops_the_recording_and_keeps_what_was_paid_for(
    start: Start, two_hundred: Callable[[str], Study], tmp_path: Path, budget: Budget, limit: str
) -> None:
    study = small(two_hundred(start()), mode="record", budget=budget, prices={"some-model": Price(input=1, output=1)})
    for _ in range(2):  # the second run may find room for an answer that the first one, with others on their way, did not
        with pytest.raises(Problem, match=f"stopped \\({limit}"):
            transcribe.transcribe(study)
        cassette = Cassette.open(study.folder / "transcribe/cassette.jsonl")
        assert 0 < len(cassette.good) < 200
        used = sum(known["usage"]["total_tokens"] for known in cassette.records)
        assert len(cassette.records) <= budget.requests
        assert used <= budget.tokens
        assert used / 1e6 <= budget.usd
        assert len(served(tmp_path)) == len(cassette.records)


def answered(content: str, **more: Any) -> dict[str, Any]:
    """The record of a response with this content, and whatever else it says, as a server may write it."""
    asked = Question("a test", {"model": "m", "messages": []}, {"name": "p", "sha256": "0"}, lambda _: None)
    body = json.dumps({"choices": [{"message": {"content": content}, "finish_reason": "stop"}], **more})
    now = datetime.now(UTC)
    return record.record_of(asked, body, now, now)


def test_an_answer_that_no_file_can_hold_is_kept_as_far_as_it_can_be(tmp_path: Path) -> None:
    cassette = Cassette(tmp_path / "c.jsonl")
    cassette.append([answered("好\ud83d 😀", usage={"prompt_tokens": float("nan"), "completion_tokens": 3})])
    (kept,) = Cassette.open(cassette.path).good.values()
    assert text_of(kept) == "好\ufffd 😀"
    assert kept["usage"] == {"prompt_tokens": None, "completion_tokens": 3}
    assert verify(cassette.path) == []


@pytest.mark.parametrize("key", ["x", "0", "token", "none"])
def test_a_word_in_place_of_a_key_changes_no_answer(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    known = answered("Bearer x, a token, 0", usage={"prompt_tokens": 10}, created=1764000000)
    assert known["problem"] is None
    assert text_of(known) == "Bearer x, a token, 0"
    assert known["usage"] == {"prompt_tokens": 10}


def test_a_last_line_that_only_lacks_its_end_is_kept(tmp_path: Path) -> None:
    cassette = Cassette(tmp_path / "c.jsonl")
    cassette.append([answered("一")])
    content = cassette.path.read_bytes()
    cassette.path.write_bytes(content.rstrip(b"\n"))
    assert verify(cassette.path) == [f"{cassette.path}, line 1: has no end of line"]
    with cassette.recording():
        assert len(cassette.good) == 1
    assert cassette.path.read_bytes() == content


def test_a_wrong_key_stops_at_once(
    start: Start, two_hundred: Callable[[str], Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-0123456789")
    study = small(two_hundred(start(key=KEY)), mode="record")
    with pytest.raises(Problem, match=r"stopped .AuthenticationError 401") as refusal:
        transcribe.transcribe(study)
    assert "sk-wrong" not in str(refusal.value)
    assert len(served(tmp_path)) <= study.llm.concurrency


def test_no_server_at_all_is_noticed_before_every_question_was_tried(two_hundred: Callable[[str], Study]) -> None:
    study = small(two_hundred("http://127.0.0.1:9/v1"), mode="record", network_retries=1)
    with pytest.raises(Problem, match=r"stopped .APIConnectionError.* with 200 of 200 requests unanswered"):
        transcribe.transcribe(study)


def test_a_batch_is_found_again_after_a_kill_and_bad_answers_are_asked_again(
    start: Start, two_hundred: Callable[[str], Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = two_hundred(start(faults=0.1, looks=4))
    words = [str(PROGRAMS / "mi-llm"), "transcribe", "--mode", "batch", "--yes"]
    run = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    while not any(entry["answered"] == "batch" for entry in served(tmp_path)):
        time.sleep(0.02)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    monkeypatch.setattr(batch, "SHORTEST", 0.05)
    monkeypatch.setattr(batch, "LONGEST", 0.05)
    transcribe.transcribe(small(study, mode="batch"))
    cassette = Cassette.open(study.folder / "transcribe/cassette.jsonl")
    assert len(cassette.good) == 200
    assert {known["batch"] for known in cassette.records} >= {"batch-0", "batch-1"}
    well = Counter(entry["asked"] for entry in served(tmp_path) if entry["answered"] == "good")
    assert set(well.values()) == {1}
    assert len(well) == 200


def test_dry_run_says_what_it_would_take_and_asks_nothing(
    start: Start, two_hundred: Callable[[str], Study], tmp_path: Path
) -> None:
    two_hundred(start())
    words = [*command()[:2], "--mode", "record", "--dry-run"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "requests  200 of 200" in done.stdout
    assert "one token per character" in done.stdout
    assert "some-model has no entry in llm.prices" in done.stdout
    assert served(tmp_path) == []
    refused = subprocess.run([*command()[:2], "--mode", "record"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert refused.returncode == 2
    assert "add --yes" in refused.stderr


def entry(number: int, problem: str | None = None) -> dict[str, object]:
    request = {"model": "m", "messages": [{"role": "user", "content": f"问题{number}"}]}
    answer = {"choices": [{"message": {"role": "assistant", "content": f"回答{number}"}}]}
    return sealed(
        {
            "key": key_of(request), "about": f"dialog {number}", "prompt": {"name": "prompts/x.jinja", "sha256": "0" * 64},
            "request": request, "response": answer, "model": "m-1", "usage": {"prompt_tokens": 3, "completion_tokens": 4},
            "started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T00:00:01+00:00", "sdk": "openai 0", "batch": None,
            "problem": problem,
        }
    )  # fmt: skip


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    """A cassette of three answers."""
    path = tmp_path / "tape.jsonl"
    Cassette(path).append([entry(1), entry(2), entry(3, "refused")])
    return path


def test_a_cassette_cut_at_any_byte_keeps_its_whole_lines(tape: Path) -> None:
    content = tape.read_bytes()
    for size in range(0, len(content), 7):
        tape.write_bytes(content[:size])
        whole = content[:size].count(b"\n")
        assert len(Cassette.open(tape).records) == whole
        cassette = Cassette(tape)
        with cassette.recording():
            cassette.append([entry(9)])
        assert [known["about"] for known in Cassette.open(tape).records] == [f"dialog {n}" for n in range(1, whole + 1)] + [
            "dialog 9"
        ]


@pytest.mark.parametrize(("old", "new"), [("回答2", "回答二"), ("问题2", "问题二"), ('"m-1"', '"m-2"')])
def test_a_line_edited_by_hand_is_detected(tape: Path, old: str, new: str) -> None:
    lines = tape.read_text(encoding="utf-8").splitlines(keepends=True)
    tape.write_text("".join([lines[0], edited(lines[1], {old: new}), lines[2]]), encoding="utf-8")
    assert [fault.split(":")[0] for fault in verify(tape)] == [f"{tape}, line 2"]
    with pytest.raises(Problem, match=r"line 2: .*edited after recording"):
        Cassette.open(tape)
    done = subprocess.run([command()[0], "cassette", "verify", str(tape)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "line 2" in done.stdout


def test_cassettes_are_listed_shown_merged_and_exported(tape: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    Cassette(other).append([entry(2), entry(4)])
    assert merge(tape, [other]) == 1
    assert merge(tape, [other]) == 0

    def cassette(*words: str) -> str:
        return subprocess.run([command()[0], "cassette", *words], capture_output=True, text=True, check=True).stdout

    assert [line.split("dialog ")[1] for line in cassette("ls", str(tape)).splitlines()] == [
        "1  good",
        "2  good",
        "3  failed (refused)",
        "4  good",
    ]
    assert len(cassette("ls", str(tape), "--failed").splitlines()) == 1
    shown = cassette("show", str(tape), str(entry(2)["key"])[:10])
    assert "问题2" in shown
    assert "[answer]\n回答2" in shown
    cassette("export", str(tape), str(tmp_path / "tape.csv"))
    table = (tmp_path / "tape.csv").read_text(encoding="utf-8").splitlines()
    assert len(table) == 5
    assert "问题4,回答4" in table[4]


@pytest.mark.parametrize("link", ["hardlink_to", "symlink_to"])
def test_what_a_linked_cassette_links_to_never_changes(tape: Path, tmp_path: Path, link: str) -> None:
    """As in a clone whose DVC links outputs into its cache: DVC takes the link away before a stage runs, nobody does by hand."""
    before, kept = tape.read_bytes(), tmp_path / "cache"
    tape.rename(kept)
    kept.chmod(0o444)
    getattr(tape, link)(kept)
    cassette = Cassette.open(tape)
    with cassette.recording():
        cassette.append([entry(4)])
    cassette.append([entry(5)])
    assert kept.read_bytes() == before
    assert [known["about"] for known in Cassette.open(tape).records][3:] == ["dialog 4", "dialog 5"]


def test_a_full_disk_leaves_the_cassette_as_it_was(tape: Path) -> None:
    before = tape.read_bytes()
    script = (
        "import resource, sys; from pathlib import Path; import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) + 100}, {len(before) + 100}));"
        "from mi_llm.llm.cassette import Cassette; c = Cassette.open(Path(sys.argv[1])); c.append([c.records[0]])"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tape)], capture_output=True, text=True)
    assert "an answer could not be written" in done.stderr
    assert tape.read_bytes() == before


def test_the_key_is_the_whole_request() -> None:
    request = {"model": "m", "messages": [{"role": "user", "content": "你好"}], "temperature": 1.0}
    assert key_of(request) == key_of(dict(reversed(request.items())))
    assert key_of(request) != key_of(request | {"temperature": 0.9})


def test_live_asks_anew_and_keeps_both_answers(start: Start, two_hundred: Callable[[str], Study]) -> None:
    study = two_hundred(start())
    transcribe.transcribe(small(study, mode="record"))
    transcribe.transcribe(small(study, mode="live"))
    cassette = Cassette.open(study.folder / "transcribe/cassette.jsonl")
    assert (len(cassette.records), len(cassette.good)) == (400, 200)


def test_text_of_a_key_is_removed_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-local-secret")
    assert record.clean("x a-local-secret y Bearer abc.def-ghi sk-0123456789 z") == "x [removed] y [removed] [removed] z"


def test_answers_come_back_in_the_order_of_the_questions(start: Start, two_hundred: Callable[[str], Study]) -> None:
    study = small(two_hundred(start(faults=0.1)), mode="record")
    asked = transcribe.questions(study)
    got = ask.answers(study, "transcribe", asked)
    assert [known["key"] for known in got] == [question.key for question in asked]
    assert transcribe.turns_of(text_of(got[0]))[0].role == "client"
