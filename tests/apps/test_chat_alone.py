"""`mi-llm chat` without a model server: it starts one for the study's models, and ends it with itself."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import psutil
import pytest
from repository import ROOT
from served import study_in

COMMAND = [sys.executable, "-m", "mi_llm", "chat", "--study", "mini/params.yaml", "--port", "0"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "no_proxy": "*"}


@pytest.mark.parametrize("end", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_the_chat_serves_the_studys_models_while_it_is_open(tmp_path: Path, end: signal.Signals) -> None:
    study_in(tmp_path)
    with subprocess.Popen(COMMAND, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as chat:
        assert chat.stdout
        lines = [chat.stdout.readline(), chat.stdout.readline()]
        assert lines[0].startswith("Loading the models of study mini")
        opened = re.search(r"The chat is open: (\S+)", lines[1])
        assert opened, lines
        assert httpx2.get(f"{opened[1]}/ready", timeout=30).status_code == 200
        (server,) = psutil.Process(chat.pid).children()
        chat.send_signal(end)
        chat.wait(30)
        psutil.wait_procs([server], timeout=30)
        assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE


def test_without_models_the_chat_says_what_to_do(tmp_path: Path) -> None:
    for name in ("data", "src"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini/params.yaml").write_bytes((ROOT / "mini/params.yaml").read_bytes())
    done = subprocess.run(COMMAND, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "mi-llm serve: ended before it was ready" in done.stderr
    assert "mi-llm reproduce" in done.stderr
    assert "Traceback" not in done.stderr
