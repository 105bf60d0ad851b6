"""The NVIDIA GPUs of this machine, as the driver's own program describes them."""

import shutil
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as its driver describes it: memory in bytes, CUDA compute capability."""

    name: str
    memory: float
    capability: float


def lines(*command: str) -> list[str]:
    """The lines a command prints; none if it is missing or fails."""
    if shutil.which(command[0]) is None:
        return []
    try:
        done = subprocess.run(command, capture_output=True, timeout=20, check=False)  # noqa: S603 — fixed commands
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.decode(errors="replace").strip().splitlines() if done.returncode == 0 else []


def answer(*command: str) -> str | None:
    """The first line a command prints, or None if it is missing or fails."""
    return next(iter(lines(*command)), None)


def gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs: `nvidia-smi` prints one line per GPU with name, memory in MiB and compute capability.

    A card that does not report its memory (some share the processor's) is left out: what fits it is unknown.
    """
    cards = []
    for line in lines("nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"):
        name, _, rest = line.partition(",")
        memory, _, capability = rest.partition(",")
        try:
            cards.append(Gpu(name.strip(), float(memory) * 2**20, float(capability)))
        except ValueError:
            continue
    return tuple(cards)
