"""A stage ends with the run that started it, however early the run is killed."""

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest
from repository import PROGRAMS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's death is Linux's")
ENVIRONMENT = {**os.environ, "DVC_STAGE": "read@annomi"}
STAGE = f"exec {sys.executable} {PROGRAMS / 'mi-llm'} read --help"


def test_a_stage_whose_run_was_killed_before_it_began_does_nothing(tmp_path: Path) -> None:
    gate, output = tmp_path / "gate", tmp_path / "said"
    os.mkfifo(gate)
    script = f"export MI_LLM_RUN=$$; (read _ < {gate}; {STAGE}) 3>&1 >{output} 2>&1 & echo; wait"
    with subprocess.Popen(["bash", "-c", script], env=ENVIRONMENT, stdout=subprocess.PIPE) as run:
        assert run.stdout
        run.stdout.readline()
        run.kill()
        run.wait()
        gate.write_text("go\n", encoding="utf-8")
        run.stdout.read()  # ends when nobody holds the pipe: the stage has ended
    assert output.read_text(encoding="utf-8") == "mi-llm: what started this process has ended\n"


def test_a_run_that_lives_lets_its_stage_work() -> None:
    script = f"export MI_LLM_RUN=$$; ({STAGE}); echo done"
    done = subprocess.run(["bash", "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert "Usage: mi-llm read" in done.stdout


def test_what_an_app_starts_ends_with_it_too(tmp_path: Path) -> None:
    script = f"export MI_LLM_RUN=1{'0' * 9}; {STAGE}"  # no such process: the app has ended
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "mi-llm: what started this process has ended\n")


def test_a_stage_dies_with_its_run_while_it_imports(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    (tmp_path / "typer.py").write_text(f"open({str(gate)!r}).read()\n", encoding="utf-8")  # an import that takes for ever
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(["bash", "-c", f"({STAGE}) & wait"], env={**ENVIRONMENT, "PYTHONPATH": paths})
    with process as run, gate.open("w", encoding="utf-8") as writer:  # opens when the stage is at that import
        run.kill()
        run.wait()
        watch = select.poll()
        watch.register(writer, select.POLLERR)
        assert watch.poll(20_000), "the stage reads on"
