"""How far work is: logs with lines, and a run that says which stage it is at."""

import io
import logging
import subprocess
import sys

import pytest
from tqdm import tqdm

from mi_llm.progress import Lines, Stages, expected

PLAN = ["mini/dvc.yaml:digests", "mini/dvc.yaml:acquire@annomi", "mini/dvc.yaml:finetune@tiny-glm4", "mini/dvc.yaml:report"]


def test_each_state_of_a_bar_is_a_line_in_a_log() -> None:
    log = io.StringIO()
    with tqdm(total=3, file=Lines(log), desc="respond", mininterval=0, miniters=1) as bar:
        for _ in range(3):
            bar.update()
    lines = log.getvalue().splitlines()
    assert "\r" not in log.getvalue()
    assert len(lines) >= 3
    assert all(line.startswith("respond: ") for line in lines)
    assert "3/3" in lines[-1]


def test_other_texts_pass_as_they_are() -> None:
    log = io.StringIO()
    stream = Lines(log)
    stream.write("one\ntwo\r\nthree")
    stream.write("\rfour   ")
    stream.write("\r")
    stream.write("\n")
    assert log.getvalue() == "one\ntwo\nthree\nfour\n\n"
    assert stream.getvalue() == log.getvalue()  # what else a stream can do is the stream's


def test_a_command_writes_its_bars_as_lines_where_there_is_no_terminal() -> None:
    code = "import sys; from mi_llm import cli; cli.guarded = lambda run: sys.stderr.write('a\\rb\\n'); cli.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "a\nb\n"


@pytest.fixture
def log() -> logging.Logger:
    logger = logging.getLogger("test.dvc")
    logger.setLevel(logging.INFO)
    logger.handlers.clear()
    logger.propagate = False
    return logger


def test_a_run_says_which_stage_begins_and_about_how_long_the_rest_takes(log: logging.Logger) -> None:
    stream, now = io.StringIO(), [0.0]
    log.addHandler(Stages(PLAN, 600, stream, clock=lambda: now[0]))
    log.info("Running stage '%s':", PLAN[0])
    now[0] += 2
    log.info("Stage '%s' didn't change, skipping", PLAN[1])
    log.info("Running stage '%s':", PLAN[2])
    now[0] += 49
    log.info("Running stage '%s':", PLAN[3])
    log.info("something else about %s", PLAN[3])
    lines = [line for line in stream.getvalue().splitlines() if line]
    assert len(lines) == 3
    assert "stage 1 of 4, digests; about 10 min left" in lines[0]
    assert "stage 3 of 4, finetune@tiny-glm4" in lines[1]
    assert "stage 4 of 4, report; less than a minute left" in lines[2]
    bars = [line[1:25].count("#") for line in lines]
    assert bars == sorted(bars)


def test_a_run_that_is_slower_than_expected_says_so(log: logging.Logger) -> None:
    stream, now = io.StringIO(), [0.0]
    log.addHandler(Stages(PLAN, 60, stream, clock=lambda: now[0]))
    log.info("Running stage '%s':", PLAN[2])
    now[0] += 3600
    log.info("Running stage '%s':", PLAN[3])
    assert "report; about " in stream.getvalue().splitlines()[-1]
    assert " min left" in stream.getvalue().splitlines()[-1]
    assert expected(PLAN[2]) > expected(PLAN[1])
