"""The layers: the linter's contract holds, the architecture's picture is that contract, and READMEs name each folder's stages."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from repository import PROGRAMS, ROOT

from mi_llm.report.stages import stages

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


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_a_readme_names_the_folder_of_each_phase_and_its_stages(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    folders = dict(re.findall(r"`([a-z]+)/`\s*(?:[(（]([^)）]*)[)）])?", text.split("`src/mi_llm/`")[1].split("\n\n")[0]))
    phases: dict[str, list[str]] = {}
    for stage in stages().values():
        phases.setdefault(stage.phase, []).append(stage.name)
    assert phases.keys() <= folders.keys()
    assert {phase: re.findall("[a-z]+", folders[phase]) for phase, names in phases.items() if len(names) > 1} == {
        phase: names for phase, names in phases.items() if len(names) > 1
    }
