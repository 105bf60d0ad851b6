"""`./setup.sh` in a folder of its own, with pip's real resolver and a few small packages that have the names of large ones."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from repository import ROOT

FLOATING = "nvidia-nvjitlink<14,>=13.0.88"  # as cuda-toolkit, which torch requires, asks for it
PYPROJECT = """[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "mi-llm"
version = "0"
"""
BACKEND = """import shutil
def build_editable(folder, config_settings=None, metadata_directory=None):
    return shutil.copy("wheels/mi_llm-0-py3-none-any.whl", folder).rsplit("/", 1)[-1]
"""


def wheel(folder: Path, name: str, version: str, code: str = "", requires: str = "") -> None:
    """A package of one module."""
    module, about = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{module}/__init__.py", code)
        file.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cuda", "added"), [("'13.0'", {"bitsandbytes": "0.50.2", "nvidia-nvjitlink": "13.0.88"}), ("None", {})], ids=["CUDA", "CPU"]
)
def test_a_cuda_build_of_torch_brings_its_packages_in_locked_versions_and_a_cpu_build_none(
    tmp_path: Path, cuda: str, added: dict[str, str]
) -> None:
    shutil.copy(ROOT / "setup.sh", tmp_path)
    shutil.copy(ROOT / "requirements-cuda.lock", tmp_path)
    for name, text in (("requirements.lock", "torch==2.13.0\n"), ("pyproject.toml", PYPROJECT), ("backend.py", BACKEND)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel(wheels, "mi-llm", "0")
    wheel(wheels, "torch", "2.13.0", f"class version:\n    cuda = {cuda}\n", FLOATING if added else "")
    for name, version in (("nvidia-nvjitlink", "13.0.88"), ("nvidia-nvjitlink", "13.5.37")):
        wheel(wheels, name, version)
    wheel(wheels, "bitsandbytes", "0.50.2", requires="torch<3,>=2.4")
    wheel(wheels, "bitsandbytes", "0.60.0")
    pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "wheels", "PYTHON": sys.executable}
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))} | pip
    subprocess.run([tmp_path / "setup.sh"], env=surroundings, check=True)
    shown = subprocess.run(
        [tmp_path / ".venv/bin/python", "-m", "pip", "freeze", "--exclude-editable"],
        env=surroundings, cwd=tmp_path, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    installed = dict(line.split("==") for line in shown.splitlines() if "==" in line)
    assert {name: version for name, version in installed.items() if name not in ("mi-llm", "torch")} == added


def test_the_cuda_lock_adds_nothing_to_what_the_other_lock_installs() -> None:
    """It is a constraint: with both files, pip finds this environment complete."""
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--dry-run", "-r", "requirements.lock"]
    shown = subprocess.run(
        [*command, "-c", "requirements-cuda.lock"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "Would install" not in shown
    assert "Requirement already satisfied: torch==2.13.0" in shown


def test_the_cuda_lock_holds_exact_versions_of_packages_that_the_other_lock_does_not_name() -> None:
    both = [
        dict(line.split("==") for line in (ROOT / file).read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
        for file in ("requirements.lock", "requirements-cuda.lock")
    ]
    assert both[1].keys() & both[0].keys() == set()
    assert {"bitsandbytes", "triton", "nvidia-nccl-cu13"} <= both[1].keys()
