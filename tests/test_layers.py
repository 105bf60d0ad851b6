"""The layers: the linter's contract holds, and the architecture's picture is that contract."""

import re
import subprocess
import tomllib
from pathlib import Path

from repository import PROGRAMS, ROOT

CONTRACT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"][0]


def test_imports_go_down_only_and_a_sideways_one_is_refused(tmp_path: Path) -> None:
    command = [str(PROGRAMS / "lint-imports"), "--no-cache", "--config", str(ROOT / "pyproject.toml")]
    whole = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stdout

    subprocess.run(["cp", "-r", str(ROOT / "src" / "mi_llm"), str(tmp_path / "mi_llm")], check=True)
    sideways = tmp_path / "mi_llm" / "score" / "score.py"
    sideways.write_text(sideways.read_text(encoding="utf-8") + "\nfrom mi_llm.miti import blind\n", encoding="utf-8")
    refused = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert "mi_llm.score is not allowed to import mi_llm.miti" in refused.stdout


def test_the_architectures_picture_is_the_contract() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    picture = text.split("## The layers")[1].split("```text")[1].split("```")[0].strip().splitlines()
    assert [re.split(r"\s{2,}", line)[0] for line in picture] == CONTRACT["layers"]
    assert all(re.split(r"\s{2,}", line)[1] for line in picture), "each layer says what it is"
