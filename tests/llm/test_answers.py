"""What servers send in place of a good answer: everything is kept, nothing is lost, the budget holds."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from repository import ROOT

from mi_llm.llm import answer, record
from mi_llm.llm.cassette import Cassette, Question, text_of, verify
from mi_llm.problem import Problem
from mi_llm.study import Budget, Llm

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
            record.record(options_, questions(count), cassette, "test")
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
    ("text", "said"),
    [
        ("<think>嗯</think>\n你好", "你好"),
        ("嗯，她累了。</think>\n\n你好", "你好"),
        ("<THINK>嗯", ""),
        ("你好<think>嗯</think>。", "你好。"),
        ("[THINK]嗯[/THINK]你好", "你好"),
        (" 我想 <b> 一想 ", " 我想 <b> 一想 "),
    ],
)
def test_thoughts_are_no_part_of_what_is_said(text: str, said: str) -> None:
    assert answer.without_thoughts(text) == said


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
