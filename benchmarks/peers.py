"""The peers of the benchmarks: other people's tools, each in an environment of its own, made by benchmarks/peers.sh."""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from results import Skipped

ROOT = Path(__file__).parent.parent
SCRIPTS = Path(__file__).parent / "llamafactory"
ON_PROCESSOR = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # where both sides of a benchmark run


def python() -> Path:
    """LLaMA-Factory's interpreter: of the environment that MI_LLM_PEERS names, or `.peers/llamafactory/`."""
    interpreter = Path(os.environ.get("MI_LLM_PEERS", ROOT / ".peers" / "llamafactory")) / "bin" / "python"
    if not interpreter.exists():
        raise Skipped(f"no {interpreter}; make it with benchmarks/peers.sh, or name an environment in MI_LLM_PEERS")
    return interpreter


def run(script: str, *arguments: Path | str, threads: int) -> None:
    """Run one script of benchmarks/llamafactory/ in LLaMA-Factory's environment; what it says is shown only if it fails."""
    quiet = {
        "LLAMAFACTORY_VERBOSITY": "ERROR",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [python(), SCRIPTS / script, *arguments],
        env={**ON_PROCESSOR, **quiet, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{script} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def exchanged(job: dict[str, Any], work: Callable[[Path, Path], object]) -> dict[str, Any]:
    """Hand a job to another process as a file, and read the file with which it answers; `work` is told both names."""
    with tempfile.TemporaryDirectory() as scratch:
        asked, answer = Path(scratch) / "job.json", Path(scratch) / "result.json"
        asked.write_text(json.dumps(job), encoding="utf-8")
        work(asked, answer)
        result: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return result
