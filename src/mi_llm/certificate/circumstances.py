"""The circumstances of a run: the commit, the machine, the versions, the time.

Reads git, the system and the installed packages; writes nothing. None of it belongs in an output that DVC tracks.
"""

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from mi_llm import __version__
from mi_llm.engine.estimate import gib
from mi_llm.engine.nvidia import gpus
from mi_llm.git import git, head
from mi_llm.stage import TRACED


@dataclass(frozen=True)
class Code:
    """Which code ran: the commit, the files that are not as committed (both None without git), the public address if known."""

    commit: str | None
    changed: tuple[str, ...] | None
    address: str | None


@dataclass(frozen=True)
class Circumstances:
    """Code, machine and versions of a run; `time` is UTC, memory in GB."""

    time: str
    code: Code
    processor: str
    cores: int
    memory: float
    gpu: str | None
    system: str
    versions: dict[str, str]


def public(address: str) -> str | None:
    """An https address without name and password; nothing of a folder or a private server."""
    parts = urlsplit(address)
    if parts.scheme != "https" or parts.hostname is None:
        return None
    port = f":{parts.port}" if parts.port else ""
    return f"https://{parts.hostname}{port}{parts.path}"


def code() -> Code:
    """The code of this run. A changed lock does not count: runs write locks, and the comparison reads their hashes."""
    commit = head()
    if commit is None:
        return Code(None, None, None)
    status = git("status", "--porcelain", "--no-renames", "-z", "--", ".", ":(exclude,glob)**/dvc.lock")
    changed = tuple(sorted(entry[3:] for entry in status.decode("utf-8", "replace").split("\0") if entry))
    return Code(commit, changed, public(git("config", "--default", "", "remote.origin.url").decode("utf-8", "replace").strip()))


def processor() -> str:
    """The processor's name from /proc/cpuinfo, else its architecture."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8", errors="replace").splitlines() if table.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def system() -> str:
    """The operating system with its version."""
    kernel = f"{platform.system()} {platform.release()}"
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {kernel}"
    except OSError:
        return kernel


def gpu() -> str | None:
    """The NVIDIA GPUs in words, or None."""
    return " + ".join(f"{card.name}, {gib(card.memory)}" for card in gpus()) or None


def circumstances() -> Circumstances:
    """The present code, machine, time, and versions of the installed packages (lm_eval is optional)."""
    return Circumstances(
        time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"),
        code=code(),
        processor=processor(),
        cores=os.cpu_count() or 1,
        memory=psutil.virtual_memory().total / 1e9,
        gpu=gpu(),
        system=system(),
        versions={
            "python": platform.python_version(),
            "mi_llm": __version__,
            **{package: version(package) for package in sorted((*TRACED, "dvc", "numpy", "scipy")) if find_spec(package)},
        },
    )
