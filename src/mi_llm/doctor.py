"""`mi-llm doctor`: what this machine has, and what is missing for which study."""

import os
import platform
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from mi_llm.study import Study


@dataclass(frozen=True)
class Machine:
    """What was found: sizes in GB, names where there is one, None where there is nothing."""

    python: str
    cores: int
    memory: float
    disk: float
    gpu: str | None
    engine: str | None
    fonts: bool
    network: bool
    key: bool
    mirror: str | None


def answer(*command: str) -> str | None:
    """The first line a command prints, or None if it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, timeout=20, check=False)  # noqa: S603 — fixed commands
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.decode(errors="replace").strip().splitlines()
    return lines[0] if done.returncode == 0 and lines else None


def reachable(host: str) -> bool:
    """Whether a TCP connection to a host's HTTPS port opens within two seconds."""
    try:
        with socket.create_connection((host, 443), timeout=2):
            return True
    except OSError:
        return False


@cache
def machine() -> Machine:
    """Look at this machine."""
    return Machine(
        python=platform.python_version(),
        cores=os.cpu_count() or 1,
        memory=psutil.virtual_memory().total / 1e9,
        disk=shutil.disk_usage(Path.cwd()).free / 1e9,
        gpu=answer("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"),
        engine=answer("docker", "info", "--format", "docker {{.ServerVersion}}") or answer("podman", "--version"),
        fonts=bool(answer("fc-list", ":lang=zh", "family")),
        network=reachable("github.com"),
        key="OPENAI_API_KEY" in os.environ,
        mirror=os.environ.get("MI_LLM_MIRROR"),
    )


def fitting(study: Study, found: Machine) -> list[str]:
    """What keeps a study from running here."""
    missing = []
    if found.disk < study.expect.disk_gb:
        missing.append(f"{found.disk:.1f} GB of disk are free, {study.expect.disk_gb:g} are needed")
    if study.base.source == "hub":
        missing.append("loading the paper's models is not built yet")
        if not found.gpu:
            missing.append("no NVIDIA GPU")
        if not found.network:
            missing.append("no network, which fetching the models needs")
    if study.acquire.upstream and not found.mirror and not found.network:
        missing.append("neither network nor a mirror folder of the public corpora (MI_LLM_MIRROR)")
    if study.llm.mode != "replay" and not found.key:
        missing.append("no OPENAI_API_KEY, which recording needs")
    return missing


def doctor(studies: list[Study]) -> int:
    """Print what was found and what each study lacks; returns 0 if the first study can run."""
    found = machine()
    rows = [
        ("Python", found.python, "3.11 or newer"),
        ("CPU cores", str(found.cores), "mini: 2"),
        ("memory", f"{found.memory:.0f} GB", "mini: 4 GB"),
        ("free disk", f"{found.disk:.0f} GB", ", ".join(f"{study.name}: {study.expect.disk_gb:g} GB" for study in studies)),
        ("NVIDIA GPU", found.gpu or "none", "paper"),
        ("container engine", found.engine or "none", "paper in a container"),
        ("Chinese fonts", "yes" if found.fonts else "none", "to read the pages on this machine"),
        ("network", "yes" if found.network else "no", "public corpora, models"),
        ("OPENAI_API_KEY", "set" if found.key else "not set", "to record new answers"),
        ("MI_LLM_MIRROR", found.mirror or "not set", "public corpora without network"),
    ]
    for name, value, needed in rows:
        print(f"  {name:<18}{value:<34}{needed}")
    status = 0
    for study in studies:
        missing = fitting(study, found)
        print(f"\nstudy {study.name}: {'can run here' if not missing else 'cannot run here'}")
        for line in missing:
            print(f"  - {line}")
        if study is studies[0] and missing:
            status = 1
    sys.stdout.flush()
    return status
