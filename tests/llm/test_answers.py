"""What servers send in place of a good answer: everything is kept, nothing is lost, the budget holds."""

import csv
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from repository import ROOT

from mi_llm import storage
from mi_llm.llm import answer, ask, batch, record, wire
from mi_llm.llm.cassette import Cassette, Question, export, line_of, sealed, shown, text_of, verify
from mi_llm.problem import Problem
from mi_llm.study import Budget, Llm, Study

SERVER = ROOT / "tests" / "support" / "model_server.py"
Start = Callable[..., str]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start servers of `model_server.py`; gives the base URL. Their log is `<name>.jsonl`."""
    running = []

    def go(name: str = "server", **options: float | str) -> str:
        words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
        command = [sys.executable, str(SERVER), "--log", str(tmp_path / f"{name}.jsonl"), *words]
        running.append(server := subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert server.stdout is not None
        return f"http://127.0.0.1:{int(server.stdout.readline())}/v1"

    yield go
    for server in running:
        server.kill()
        server.wait()


def options(url: str, **changes: Any) -> Llm:
    """How a server is asked, quickly."""
    settings: dict[str, Any] = {
        "mode": "record", "model": "m", "base_url": url, "concurrency": 4, "attempts": 1, "network_retries": 2, "timeout_s": 30,
        "prices": {}, "batch_discount": 0.5, "budget": Budget(requests=1000, tokens=10**9, usd=1e9),
    }  # fmt: skip
    return Llm(**(settings | changes))


def json_fault(text: str) -> str | None:
    """A check: the text is JSON."""
    try:
        answer.parsed(text)
    except ValueError as error:
        return str(error)
    return None


def questions(count: int) -> list[Question]:
    """So many small questions, whose answers are JSON."""
    prompt = {"name": "p", "sha256": "0"}
    return [
        Question(f"q{number}", {"model": "m", "messages": [{"role": "user", "content": f"问题{number}"}]}, prompt, json_fault)
        for number in range(count)
    ]


def served(folder: Path, name: str = "server") -> list[dict[str, Any]]:
    """A server's log."""
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("deep", "not JSON (nested too deeply)"),
        ("body", "not a chat completion"),
        ("huge", "not a chat completion"),
        ("half", "a control character, or half of a character, in a text"),
        ("nul", "a control character, or half of a character, in a text"),
        ("escape", "control characters in the text"),
        ("usage", None),
        ("words", None),
        ("negative", None),
        ("infinite", None),
        ("think", None),
        ("end_turn", None),
    ],
)
def test_an_odd_answer_is_kept_with_its_fault_and_recording_goes_on(
    start: Start, tmp_path: Path, kind: str, problem: str | None
) -> None:
    cassette = Cassette(tmp_path / "cassette.jsonl")
    options_ = options(start(faults=1, kinds=kind))
    for count in (2, 4):
        refused = pytest.raises(Problem, match=f"the first is q0: {re.escape(str(problem))}") if problem else nullcontext()
        with refused:
            unanswered = [asked for asked in questions(count) if asked.key not in cassette.good]
            record.record(options_, unanswered, cassette, "test")
        cassette = Cassette.open(cassette.path)
        assert {known["problem"] for known in cassette.records} == {problem}
    assert len(cassette.records) == len(served(tmp_path)) == (6 if problem else 4)
    assert verify(cassette.path) == []
    assert record.ledger_of(options_, cassette).tokens >= 0
    if kind == "think":
        (*_, known) = cassette.good.values()
        assert "先想一想" in known["response"]["choices"][0]["message"]["content"]
        assert answer.parsed(text_of(known)) == {}


def test_a_slow_server_gets_no_more_requests_than_the_budget_names_over_all_runs(start: Start, tmp_path: Path) -> None:
    slow = options(
        start(faults=1, kinds="timeout"), network_retries=8, timeout_s=0.3, budget=Budget(requests=5, tokens=10**9, usd=1e9)
    )
    for _ in range(2):
        with pytest.raises(Problem, match="requests: 5 of 5"):
            record.record(slow, questions(8), Cassette(tmp_path / "cassette.jsonl"), "test")
    assert len((tmp_path / "cassette.requests").read_text().splitlines()) == 5
    assert len(served(tmp_path)) <= 5


def test_an_answer_that_drips_is_given_up(start: Start, tmp_path: Path) -> None:
    dripping = options(start(faults=1, kinds="drip"), network_retries=1, timeout_s=0.3)
    with pytest.raises(Problem, match="APITimeoutError"):
        record.record(dripping, questions(1), Cassette(tmp_path / "cassette.jsonl"), "test")


def test_a_redirect_carries_no_dialog_to_another_host(start: Start, tmp_path: Path) -> None:
    elsewhere = start("elsewhere")
    redirecting = start(faults=1, kinds="redirect", elsewhere=elsewhere.removesuffix("/v1"))
    with pytest.raises(Problem, match=f"APIStatusError 307.*redirects to {elsewhere}/chat/completions, which is not followed"):
        record.record(options(redirecting), questions(2), Cassette(tmp_path / "cassette.jsonl"), "test")
    assert served(tmp_path, "elsewhere") == []


def test_a_compressed_answer_is_refused_before_it_grows(start: Start, tmp_path: Path) -> None:
    bomb = options(start(faults=1, kinds="bomb"))
    with pytest.raises(Problem, match="the answer is compressed"):
        record.record(bomb, questions(1), Cassette(tmp_path / "cassette.jsonl"), "test")


def test_a_wrong_port_is_noticed_at_the_first_request_and_named(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"stopped \(APIConnectionError.* at http://127.0.0.1:9/v1\) with 20 of 20"):
        record.record(options("http://127.0.0.1:9/v1"), questions(20), Cassette(tmp_path / "cassette.jsonl"), "test")
    assert len((tmp_path / "cassette.requests").read_text().splitlines()) == 1


def test_a_model_without_a_price_shows_no_cost(start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    record.record(options(start()), questions(2), Cassette(tmp_path / "cassette.jsonl"), "test")
    shown = capfd.readouterr().err
    assert "no price known" in shown
    assert "USD" not in shown


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("<think>嗯</think>\n你好", "你好"),
        ("嗯，她累了。</think>\n\n你好", "你好"),
        ("<THINK>嗯", ""),
        ("你好<think>嗯</think>。", "你好。"),
        ("[THINK]嗯[/THINK]你好", "你好"),
        (" 我想 <b> 一想 ", " 我想 <b> 一想 "),
    ],
)
def test_thoughts_are_no_part_of_what_is_said(text: str, spoken: str) -> None:
    assert answer.without_thoughts(text) == spoken


@pytest.mark.parametrize(
    "text",
    ['[{"a": 1}]', '```JSON\n[{"a": 1}]\n```', '改写[一]如下：\n[{"a": 1}]\n希望有帮助。', '```\n[{"a": 1}]\n```\n说明：……'],
)
def test_json_is_found_in_fences_and_between_prose(text: str) -> None:
    assert answer.parsed(text) == [{"a": 1}]


@given(st.text(max_size=60) | st.text(alphabet='[]{}",:1e9\\u<think>/`', max_size=60))
def test_whatever_is_read_is_a_value_or_a_sentence(text: str) -> None:
    assert answer.THOUGHTS.search(answer.without_thoughts(text)) is None
    for read in (answer.loads, answer.parsed):
        with suppress(ValueError):
            json.dumps(read(text), allow_nan=False)


PLAIN = st.none() | st.integers() | st.floats() | st.text(max_size=5)
JSON = st.recursive(PLAIN, lambda part: st.lists(part) | st.dictionaries(st.text(max_size=5), part))


@given(JSON, JSON, JSON, st.sampled_from(["", "stop", "eos_token", "end_turn", "length", [], 3]))
def test_no_response_stops_the_writing_of_its_record(usage: object, message: object, whole: object, finish: object) -> None:
    now = datetime.now(UTC)
    for body in (whole, {"choices": [{"message": message, "finish_reason": finish}], "usage": usage},
                 {"choices": [{"message": {"content": message}, "finish_reason": finish}], "usage": usage}):  # fmt: skip
        known = record.record_of(questions(1)[0], json.dumps(body), now, now)
        json.dumps(known, allow_nan=False, ensure_ascii=False).encode()
        ledger = record.Ledger(options("http://127.0.0.1:9/v1"))
        ledger.add(known)
        assert ledger.tokens >= 0


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at batches more often than a service would like."""
    monkeypatch.setattr(batch, "SHORTEST", 0.01)
    monkeypatch.setattr(batch, "LONGEST", 0.01)


def sent(folder: Path) -> Counter[str]:
    """How often a server did what."""
    return Counter(entry["answered"] for entry in served(folder))


@pytest.mark.usefixtures("quick")
def test_a_batch_with_odd_lines_gives_its_good_ones_and_the_rest_is_sent_again(
    start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cassette = Cassette(tmp_path / "cassette.jsonl")
    batch.record(options(start(batch="odd"), attempts=3), questions(4), cassette, "test")
    assert len(Cassette.open(cassette.path).good) == 4
    assert sent(tmp_path) == {"batch": 2, "good": 5}
    assert "batch batch-0: 3 lines are no answers, line 2 of file-1 among them" in capfd.readouterr().err


@pytest.mark.usefixtures("quick")
def test_what_a_service_refuses_is_said_and_not_sent_again(start: Start, tmp_path: Path) -> None:
    cassette, asks = Cassette(tmp_path / "cassette.jsonl"), options(start(batch="refused"), attempts=3)
    for _ in range(2):
        with pytest.raises(Problem, match=r"1 of 3 requests have no .*; 1 of them: 400: temperature does not support 0"):
            batch.record(asks, questions(3), cassette, "test")
    assert (len(cassette.good), sent(tmp_path)) == (2, {"batch": 1, "good": 2, "400": 1})


@pytest.mark.usefixtures("quick")
def test_a_batch_that_fails_as_a_whole_says_why(start: Start, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="failed: Enqueued token limit reached"):
        batch.record(options(start(batch="failed"), attempts=3), questions(3), Cassette(tmp_path / "cassette.jsonl"), "test")
    assert sent(tmp_path) == {"batch": 1}


@pytest.mark.usefixtures("quick")
def test_another_clones_batch_is_not_waited_for(start: Start, tmp_path: Path) -> None:
    asks = options(start(looks=3))
    with wire.blocking(asks.base_url, 1) as client:
        batch.submit(client, questions(9), batch.label_of(questions(9)))  # nobody ever looks at it
    batch.record(asks, questions(2), Cassette(tmp_path / "cassette.jsonl"), "test")
    assert sent(tmp_path) == {"batch": 2, "good": 2}


def line(**changes: Any) -> str:
    """A cassette's line with a valid seal, whatever is in it."""
    now = datetime.now(UTC)
    body = json.dumps({"choices": [{"message": {"content": "{}"}}]})
    return storage.dump(sealed(record.record_of(questions(1)[0], body, now, now) | changes))


@pytest.mark.parametrize(
    "content",
    [
        '{"key": NaN}',
        line().replace('"test"', "NaN").replace('"q0"', "NaN"),
        line().replace('"q0"', '"\\ud83d"'),
        line().replace('"q0"', "[" * 20000 + "]" * 20000),
        line(response=[]),
        line(ended=3),
        line(about=[1]),
        line(usage=None)[:-1] + "\x00}",
    ],
)
def test_no_line_of_a_cassette_gives_a_traceback(tmp_path: Path, content: str) -> None:
    path = tmp_path / "cassette.jsonl"
    path.write_text(line() + "\n" + content + "\n", encoding="utf-8")
    (fault,) = verify(path)
    assert "line 2: " in fault
    with pytest.raises(Problem, match="line 2"):
        Cassette.open(path)


def test_a_terminal_is_not_moved_by_what_a_server_sent() -> None:
    known = json.loads(line(about="q\n\x1b[2Jx\u202e", model="\x9b31m"))
    assert not set(line_of(known)) & set("\n\x1b\x9b\u202e")
    assert not set(shown(known)) & set("\x1b\x9b\u202e")
    assert "\x1b" not in str(Problem("a", "\x1b[2J", "b", "c"))


def test_no_cell_of_an_export_is_a_formula(tmp_path: Path) -> None:
    cassette = Cassette(tmp_path / "cassette.jsonl")
    cassette.append([json.loads(line(about='=HYPERLINK("http://x")', model="@SUM(1)"))])
    export(cassette, tmp_path / "out.csv")
    (row,) = csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8", newline=""))
    assert (row["about"], row["model"]) == ('\'=HYPERLINK("http://x")', "'@SUM(1)")
    frame = pd.DataFrame({"=a": ["-1.5", "+1+cmd|x", " =1", "＝1"], "n": [-1, -2, 3, 4]}, index=["=i", "j", "-k", "l"])
    expected = ",'=a,n\n'=i,-1.5,-1\nj,'+1+cmd|x,-2\n'-k,' =1,3\nl,'＝1,4\n"
    assert storage.table_text(frame, index=True) == expected
    assert storage.csv_text(["a"], [["=1"], [-1]]) == "a\n'=1\n-1\n"
    listed = ["-1, 0.5, 2", "-0.5 1.2", "+1; -2%"]
    assert [storage.no_formula(text) for text in listed] == listed, "a list of numbers is no formula"
    assert [storage.no_formula(text) for text in ("-1, =2", "-1 +a")] == ["'-1, =2", "'-1 +a"]


def test_settings_are_left_out_or_added_as_the_parameters_say(study: Study) -> None:
    changed = {"temperature": None, "response_format": None, "max_completion_tokens": 900}
    llm = Llm.model_validate(study.llm.model_dump() | {"extra_body": changed})
    asked = ask.request(study.model_copy(update={"llm": llm}), [{"role": "user", "content": "你好"}], temperature=0)
    assert asked == {
        "model": study.llm.model,
        "messages": [{"role": "user", "content": "你好"}],
        "max_completion_tokens": 900,
    }
    assert "extra_body" not in study.llm.model_dump()
    with pytest.raises(ValueError, match="messages is no setting"):
        Llm.model_validate(study.llm.model_dump() | {"extra_body": {"messages": []}})


def test_questions_that_ask_the_same_are_not_called_recorded(study: Study, workspace: Path) -> None:
    asked = [*questions(3), *questions(3)[:2]]
    assert ask.workload(study, "test", asked).requests == "3 of 5 (0 are recorded, 2 are the same as another)"


def asker(folder: Path, url: str, requests: int) -> list[str]:
    """A program that records 200 answers, within a budget."""
    script = (
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[1:3]; import test_answers as t\n"
        "from mi_llm.problem import Problem\n"
        "limit = t.Budget(requests=int(sys.argv[5]), tokens=10**9, usd=1e9)\n"
        "asks = t.options(sys.argv[4], concurrency=8, attempts=3, network_retries=3, timeout_s=1, budget=limit)\n"
        "cassette = t.Cassette(Path(sys.argv[3]) / 'cassette.jsonl')\n"
        "with cassette.recording():\n"
        "    t.record.record(asks, [a for a in t.questions(200) if a.key not in cassette.good], cassette, 'test')\n"
    )
    here = Path(__file__).parent
    return [sys.executable, "-c", script, str(here), str(here.parent / "support"), str(folder), url, str(requests)]


@pytest.mark.slow
@pytest.mark.parametrize("budget", [2000, 150])
def test_killed_ten_times_at_a_faulty_server_all_valid_answers_are_kept(start: Start, tmp_path: Path, budget: int) -> None:
    kinds = "429,500,timeout,truncated,deep,huge,usage,words,negative,think,redirect,cut"
    command = asker(tmp_path, start(faults=0.3, kinds=kinds, delay=0.1, timeout=1.5), budget)
    path, chance, valid = tmp_path / "cassette.jsonl", random.Random(5), ("good", "usage", "words", "negative", "think")
    kills, kept = 0, set[str]()
    while kills < 10:
        before = len(served(tmp_path))
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while run.poll() is None and len(served(tmp_path)) == before:
            time.sleep(0.01)
        time.sleep(chance.random() * 0.4)
        kills += 1
        run.kill()
        run.wait()
        good = set(Cassette.open(path).good)
        assert kept <= good
        kept = good
    for _ in range(10):  # a redirect is not repeated within a run
        if subprocess.run(command, capture_output=True).returncode == 0:
            break
    log = served(tmp_path)
    assert len(log) <= budget
    cassette = Cassette.open(path)
    paid = Counter(entry["asked"] for entry in log if entry["answered"] in valid)
    assert paid.total() - len(paid) <= kills * 8
    if budget == 2000:
        assert len(cassette.good) == 200 == len(paid)
    else:
        assert len((tmp_path / "cassette.requests").read_text().splitlines()) == budget
    assert verify(path) == []


def test_where_nothing_is_recorded_a_replay_writes_nothing(study: Study) -> None:
    assert ask.answers(study, "code", questions(2)) == []
    assert not study.path("code").exists()
