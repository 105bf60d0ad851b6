"""P6, recording: 2,040 answers from a server that takes 200 ms for each, 32 at a time, against the least time that queueing
allows.

The server is `tests/support/model_server.py`, a process of its own on the same machine; each answer is checked, sealed
and fsynced.

    python benchmarks/run.py P6
"""

import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import Result, spread

from mi_llm.llm import record
from mi_llm.llm.cassette import Cassette, Question
from mi_llm.study import Budget, Llm

ROUNDS = 3
ANSWERS, CONCURRENCY, DELAY = 2040, 32, 0.2
GOAL = 1.15  # times the queueing floor
SERVER = Path(__file__).parent.parent / "tests" / "support" / "model_server.py"
DIALOG = "# 原对话\n" + "来访者：最近总是熬夜，白天没有精神，想改又改不了。\n咨询师：听起来你想改，又觉得改不动。\n" * 8


def questions() -> list[Question]:
    """Requests about 16 turns each, all different."""
    return [
        Question(
            about=f"dialog {number}",
            request={"model": "m", "messages": [{"role": "user", "content": f"{number}\n{DIALOG}"}]},
            prompt={"name": "benchmark", "sha256": ""},
            check=lambda text: None if text.startswith("[") else "not a list",
        )
        for number in range(ANSWERS)
    ]


def measure(folder: Path) -> float:
    """Seconds that one recording takes, from the first question to the last fsync."""
    command = [sys.executable, str(SERVER), "--log", str(folder / "log"), "--delay", str(DELAY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        options = Llm(
            mode="record",
            model="m",
            base_url=f"http://127.0.0.1:{int(server.stdout.readline())}/v1",
            concurrency=CONCURRENCY,
            attempts=1,
            network_retries=1,
            timeout_s=60,
            prices={},
            batch_discount=1,
            budget=Budget(requests=10**9, tokens=10**12, usd=1),
        )
        cassette = Cassette(folder / "cassette.jsonl")
        began = time.perf_counter()
        with cassette.recording():
            record.record(options, questions(), cassette, "record")
        took = time.perf_counter() - began
        server.kill()
    assert len(Cassette.open(cassette.path).good) == ANSWERS
    return took


def main() -> Result:
    """Record a few times."""
    floor = math.ceil(ANSWERS / CONCURRENCY) * DELAY
    seconds = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            seconds.append(measure(Path(folder)))
    ratio = statistics.median(seconds) / floor
    return {
        "id": "P6",
        "work": f"recording {ANSWERS} answers, {CONCURRENCY} at a time, {DELAY:g} s each",
        "ours": {"seconds": spread(seconds)},
        "peers": {"the least that queueing allows": {"seconds": floor}},
        "ratio": round(ratio, 3),
        "goal": f"at most {GOAL:g} times the least",
        "met": ratio <= GOAL,
        "details": {},
    }
