"""The files that packages.csv lists: alone, without a network and without a cache, they install what the lock names."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from repository import ROOT

from mi_llm import storage
from mi_llm.archive import packages
from mi_llm.compare import LOCK

TOOLS = ("setuptools", "wheel", "packaging")  # what pip installs to build a package; wheel needs packaging
ROWS = packages.read(packages.shipped())


def fetched(names: Sequence[str], folder: Path) -> Path:
    """Fetch packages as the lock has them, and keep only the files that packages.csv lists, with their SHA-256."""
    wanted = [line for line in storage.read_text(ROOT / LOCK).splitlines() if line.split("==")[0] in names]
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, *wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the packages cannot be fetched here: {done.stderr.strip().splitlines()[-1]}")
    for path in folder.iterdir():
        if path.name not in {row.file for row in ROWS}:
            path.unlink()
    storage.write_text(folder.parent / "wheels.sha256", packages.sums(ROWS))
    subprocess.run(["sha256sum", "--check", "--ignore-missing", "--quiet", "wheels.sha256"], cwd=folder.parent, check=True)
    return folder


def offline(folder: Path, *words: str) -> None:
    """Run a command in a folder that is its home, without network and settings of pip, with the package files in wheels/."""
    alone = ["unshare", "--net", "--map-root-user"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        alone = []
    pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder / "wheels"), "PIP_NO_CACHE_DIR": "1"}
    surroundings = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHON": sys.executable, **pip}
    done = subprocess.run([*alone, *words], cwd=folder, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_what_exists_only_as_source_is_built_from_the_listed_files(tmp_path: Path) -> None:
    sources = [row.package for row in ROWS if not row.file.endswith(".whl")]
    fetched([*sources, *TOOLS], tmp_path / "wheels")
    offline(tmp_path, sys.executable, "-m", "venv", "new")  # with the pip of this Python, and no tools
    offline(tmp_path, "new/bin/python", "-m", "pip", "install", "--no-deps", *sources)
    offline(tmp_path, "new/bin/python", "-c", "import antlr4, jieba, rouge_score")


# The tests' own environment has more: what `make harness` and `make remotes` install.
WITHOUT_OPTIONAL_PACKAGES = """
import pkgutil, sys
from importlib import import_module
import mi_llm
for module in pkgutil.walk_packages(mi_llm.__path__, "mi_llm."):
    if module.name not in ("mi_llm.__main__", "mi_llm.benchmark.harness"):  # the program, and what the stage `benchmark` imports
        import_module(module.name)
assert "lm_eval" not in sys.modules
assert "lm_eval" not in import_module("mi_llm.certificate.circumstances").circumstances().versions
"""


@pytest.fixture
def big_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for gigabytes, gone afterward."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
def test_the_whole_environment_is_installed_from_the_listed_files(big_folder: Path) -> None:
    wheels = fetched([row.package for row in ROWS], big_folder / "wheels")
    if not list(wheels.glob("torch-*+cpu-*")):
        pytest.skip("a CUDA build of torch needs packages that packages.csv does not list")
    for name in ("setup.sh", "requirements.lock", "requirements-cuda.lock", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, big_folder)
    shutil.copytree(ROOT / "src", big_folder / "src")
    offline(big_folder, "./setup.sh")
    offline(big_folder, ".venv/bin/python", "-m", "pip", "check")
    offline(big_folder, ".venv/bin/mi-llm", "--help")
    offline(big_folder, ".venv/bin/python", "-c", WITHOUT_OPTIONAL_PACKAGES)
