"""Is this run the committed one? Output by output: identical, within tolerance, or different.

The committed `dvc.lock` (in git HEAD) says which bytes each output had; the study's `reference.json` lists the files and
metrics behind them, so that a run on another processor can be judged. An output that differs in bytes is *within
tolerance* if its metrics agree within the study's tolerances and only those of its files differ that floating point may
change.
"""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mi_llm import storage
from mi_llm.problem import Problem
from mi_llm.study import Compare, Study

FLOATING = (  # stages whose files depend on floating-point results
    "finetune", "respond", "prefer", "score", "simulate", "blind", "code", "summary", "miti", "audit", "report",
)  # fmt: skip


def committed(path: Path) -> str | None:
    """A file as git's HEAD has it, or None."""
    shown = subprocess.run(["git", "show", f"HEAD:{path.as_posix()}"], capture_output=True, check=False)  # noqa: S603, S607 — a fixed command
    return shown.stdout.decode("utf-8") if shown.returncode == 0 else None


def outputs(lock: str) -> dict[str, tuple[str, str]]:
    """The outputs that a dvc.lock names: path → (stage, hash)."""
    stages = (YAML(typ="safe").load(lock) or {}).get("stages", {})
    return {out["path"]: (name, out["md5"]) for name, entry in stages.items() for out in entry.get("outs", [])}


def facts(folder: Path) -> dict[str, Any]:
    """What the reference keeps of one output: the MD5 of each file, and the metrics."""
    files = {
        path.relative_to(folder).as_posix(): hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return {"files": files, "metrics": storage.read_json(folder / "metrics.json")}


def lock_of(study: Study) -> Path:
    """The study's lock file."""
    return study.beside("dvc.lock")


def reference_of(study: Study) -> Path:
    """The study's reference file."""
    return study.beside("reference.json")


def accept(study: Study) -> None:
    """Write the reference file from the outputs that are here."""
    paths = outputs(storage.read_text(lock_of(study)))
    storage.write_json(reference_of(study), {path: facts(Path(path)) for path in sorted(paths)})
    print(f"{reference_of(study)}: written; commit it together with {lock_of(study)}", file=sys.stderr)


def deviations(found: Any, wanted: Any, tolerance: Compare, place: str = "") -> list[str]:
    """The numbers in `found` that are farther from `wanted` than allowed, and whatever else is not the same."""
    if isinstance(wanted, dict) and isinstance(found, dict) and found.keys() == wanted.keys():
        return [line for key in wanted for line in deviations(found[key], wanted[key], tolerance, f"{place}.{key}".strip("."))]
    if isinstance(wanted, int | float) and isinstance(found, int | float):
        allowed = max(tolerance.absolute, tolerance.relative * abs(wanted))
        return [] if abs(found - wanted) <= allowed else [f"{place} is {found}, was {wanted}"]
    return [] if found == wanted else [f"{place} is {found!r}, was {wanted!r}"]


def judge(study: Study, stage: str, path: str, reference: dict[str, Any]) -> list[str]:
    """Why an output whose bytes differ is not within tolerance; an empty list if it is."""
    if path not in reference:
        return [f"no reference for it in {reference_of(study)}"]
    if not (Path(path) / "metrics.json").exists():
        return ["it is not here"]
    now, then = facts(Path(path)), reference[path]
    reasons = deviations(now["metrics"], then["metrics"], study.compare)
    if stage.split("@", maxsplit=1)[0] not in FLOATING:
        names = sorted(now["files"].keys() | then["files"].keys())
        changed = [name for name in names if now["files"].get(name) != then["files"].get(name)]
        reasons += [f"{name} differs" for name in changed if name not in ("metrics.json", "provenance.json")]
    return reasons


def compare(study: Study) -> int:
    """Print the comparison; returns the exit status, 0 if nothing differs."""
    wanted = committed(lock_of(study))
    if wanted is None:
        print(f"nothing to compare with: git has no {lock_of(study)} yet", file=sys.stderr)
        return 0
    now, then = outputs(storage.read_text(lock_of(study))), outputs(wanted)
    if not reference_of(study).exists():
        raise Problem(
            str(reference_of(study)), "no such file", "the reference of the committed run", f"git checkout {reference_of(study)}"
        )
    reference = storage.read_json(reference_of(study))
    identical, within, differ = 0, [], []
    for path, (stage, md5) in then.items():
        if now.get(path) == (stage, md5):
            identical += 1
        elif reasons := judge(study, stage, path, reference):
            differ.append(f"  differs: {path}: {'; '.join(reasons)}")
        else:
            within.append(f"  within tolerance: {path}")
    differ += [f"  differs: {path}: not in the committed lock" for path in now.keys() - then.keys()]
    for line in [*within, *differ]:
        print(line)
    print(f"compared with the committed lock: {identical} identical, {len(within)} within tolerance, {len(differ)} differ")
    return 1 if differ else 0
