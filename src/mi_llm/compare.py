"""Compare a run with the committed one: each output is identical, within tolerance, or different; then the paper's claims.

The committed `dvc.lock` (in git HEAD) says which bytes each output had; the study's `reference.json` lists the files, metrics and
verdicts behind them, so that a run on another processor can be judged. A study whose outputs cannot be shipped has no committed
lock: its reference alone is compared. An output that differs in bytes is *within tolerance* if its metrics agree within the
study's tolerances, its verdicts are the same, and only those of its files differ that floating point may change.
"""

import csv
import hashlib
import io
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from voluptuous import Invalid

from mi_llm import storage
from mi_llm.git import committed, head
from mi_llm.problem import Problem
from mi_llm.report import stages as known
from mi_llm.study import Compare, Study

FLOATING = tuple(stage.name for stage in known.stages().values() if stage.floating)
VERSIONED = ("metrics.json", "provenance.json")  # judged by their numbers, or naming versions: in any stage these may differ
FIXED = "adapter_config.json"  # and this may not, whatever the stage
LOCK = Path("requirements.lock")
EMPTY = hashlib.md5(usedforsecurity=False).hexdigest()
Verdict = Literal["identical", "within tolerance", "differs"]


@dataclass(frozen=True)
class Output:
    """One output of the run, its verdict, and the reasons if it is not identical (for *within tolerance*: what differs).

    `here`: whether its folder exists; if not, only the lock can show that it is identical.
    """

    path: str
    stage: str
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    here: bool = True


@dataclass(frozen=True)
class Claim:
    """One claim of the paper as the audit of this run judged it; `before` is the reference's verdict, None if it has none."""

    id: str
    location: str
    reported: str
    recomputed: str
    verdict: str
    before: str | None


@dataclass(frozen=True)
class Comparison:
    """A run compared with another: `against` says with what, `unknown` which outputs that does not cover.

    `against`: the committed lock, the committed reference, or where there is no commit the reference file that lies here.

    `packages`: a sentence for each package of which an output was made with another version than `requirements.lock` has.
    """

    against: Literal["lock", "reference", "reference here"]
    outputs: tuple[Output, ...]
    claims: tuple[Claim, ...]
    unknown: tuple[str, ...]
    packages: tuple[str, ...]

    def count(self, verdict: Verdict) -> int:
        """How many outputs have a verdict."""
        return sum(output.verdict == verdict for output in self.outputs)

    @property
    def by_lock(self) -> int:
        """How many of the identical outputs are not here: only the lock shows that they are identical."""
        return sum(output.verdict == "identical" and not output.here for output in self.outputs)

    @property
    def changed(self) -> tuple[Claim, ...]:
        """The claims that have another verdict than in the reference."""
        return tuple(claim for claim in self.claims if claim.verdict != claim.before)

    @property
    def agreeing(self) -> int:
        """How many claims have the reference's verdict."""
        return len(self.claims) - len(self.changed)

    @property
    def sentence(self) -> str:
        """The comparison in one line."""
        identical, within, differ = self.count("identical"), self.count("within tolerance"), self.count("differs")
        alone = f" ({self.by_lock} of them by the lock alone)" if self.by_lock else ""
        counts = f"{identical} identical{alone}, {within} within tolerance, {differ} differ"
        known = "reference that lies here (no git commit)" if self.against == "reference here" else f"committed {self.against}"
        return f"compared with the {known}: {counts}"


@cache  # a whole run reads the same lock seven times, 0.3 s each
def stages(lock: str) -> dict[str, Any]:
    """The stages of a dvc.lock, by name; raises Problem for a lock that DVC would refuse, as a killed run can leave it."""
    try:
        content = COMPILED_LOCKFILE_SCHEMA(storage.parse_yaml(lock, "dvc.lock"))
    except Problem as problem:
        found = problem.found
    except Invalid as error:
        found = str(error)
    else:
        return dict(content.get("stages", {}))
    raise Problem("dvc.lock", found, "the lock of a run", "run ./reproduce.sh again; it repairs a damaged lock")


def outputs(lock: str) -> dict[str, tuple[str, str]]:
    """The study's outputs that a dvc.lock names, without the digests of its code: path → (stage, hash)."""
    return {
        out["path"]: (name, out.get("md5", ""))
        for name, entry in stages(lock).items()
        for out in entry.get("outs", [])
        if name != "digests"
    }


def verdicts(table: Path) -> dict[str, dict[str, str]]:
    """The rows of an audit's `claims.csv`, by the claim's name."""
    rows = csv.DictReader(io.StringIO(storage.read_text(table), newline=""))
    if not {"id", "location", "reported", "recomputed", "verdict"} <= set(rows.fieldnames or ()):
        raise Problem(str(table), f"columns {rows.fieldnames}", "the audit's table of claims", "run the audit again")
    return {row["id"]: row for row in rows}


def facts(folder: Path) -> dict[str, Any]:
    """What the reference keeps of one output: the MD5 of each file, the metrics, and of an audit each claim's verdict."""
    files = storage.md5s(folder)
    known_facts = {"files": files, "metrics": storage.read_json(folder / "metrics.json")}
    if "claims.csv" in files:
        known_facts["claims"] = {name: row["verdict"] for name, row in verdicts(folder / "claims.csv").items()}
    return known_facts


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
    beside = f" together with {lock_of(study)}" if committed(lock_of(study)) else ""
    print(f"{reference_of(study)}: written; commit it{beside}", file=sys.stderr)


def deviations(now: Any, then: Any, tolerance: Compare, path: str = "") -> list[str]:
    """Sentences on what differs between metrics: numbers farther apart than the tolerance allows, other values not equal.

    `path` is the dotted key of the two values.
    """
    if isinstance(then, dict) and isinstance(now, dict) and now.keys() == then.keys():
        return [line for key in then for line in deviations(now[key], then[key], tolerance, f"{path}.{key}".strip("."))]
    if isinstance(then, int | float) and isinstance(now, int | float):
        allowed = max(tolerance.absolute, tolerance.relative * abs(then))
        return [] if abs(now - then) <= allowed else [f"{path}: here {now}, in the reference {then}"]
    return [] if now == then else [f"{path}: here {now!r}, in the reference {then!r}"]


def changed_files(now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """The names of the files that differ, appeared or are gone."""
    names = sorted(now["files"].keys() | then["files"].keys())
    return [name for name in names if now["files"].get(name) != then["files"].get(name)]


def changed_verdicts(now: dict[str, str], then: dict[str, str]) -> list[str]:
    """The claims of the paper that have another verdict, appeared or are gone."""
    return [
        f"claim {name}: here {now.get(name, 'not there')}, in the reference {then.get(name, 'not there')}"
        for name in sorted(now.keys() | then.keys())
        if now.get(name) != then.get(name)
    ]


def changed_beyond(now: dict[str, Any], then: dict[str, Any], *, floating: bool) -> list[str]:
    """The files that differ as no other processor explains: gone, new or empty; if not `floating`, all that differ."""
    reasons = []
    for name in changed_files(now, then):
        if name not in now["files"]:
            reasons.append(f"{name} is gone")
        elif name not in then["files"]:
            reasons.append(f"{name} is new")
        elif now["files"][name] == EMPTY:
            reasons.append(f"{name} is empty")
        elif name not in VERSIONED and (not floating or Path(name).name == FIXED):
            reasons.append(f"{name} has different bytes")
    return reasons


def judge(study: Study, stage: str, now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """Why an output whose bytes differ is not within tolerance; an empty list if it is."""
    reasons = deviations(now["metrics"], then["metrics"], study.compare)
    if "claims" in then:
        reasons += changed_verdicts(now.get("claims", {}), then["claims"])
    return reasons + changed_beyond(now, then, floating=stage.split("@", maxsplit=1)[0] in FLOATING)


def judged(study: Study, path: str, stage: str, reference: dict[str, Any], *, locked: bool) -> Output:
    """The verdict on one output; `locked` says that the run's lock gives it the committed hash."""
    folder = Path(path)
    if not folder.exists():
        # DVC fetches only what a run needs: what it left where it was is as its lock says.
        why = "not fetched: its hash in the lock is the committed one" if locked else "it is missing"
        return Output(path, stage, "identical" if locked else "differs", (why,), here=False)
    if path not in reference:
        return Output(path, stage, "differs", (f"it has no reference in {reference_of(study)}",))
    try:
        now, then = facts(folder), reference[path]
    except Problem as damaged:
        return Output(path, stage, "differs", (f"{damaged.where} is {damaged.found}",))
    changed = changed_files(now, then)
    if not changed:
        return Output(path, stage, "identical")
    if reasons := judge(study, stage, now, then):
        return Output(path, stage, "differs", tuple(reasons))
    return Output(path, stage, "within tolerance", tuple(f"{name} has different bytes" for name in changed))


def normal_name(name: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked_versions(lock: str) -> dict[str, str]:
    """The exact version of each package in a lock file, by normal name."""
    pairs = (line.split("==") for line in lock.splitlines() if "==" in line and not line.startswith("#"))
    return {normal_name(name): version for name, version in pairs}


def other_packages(outputs: Sequence[Output]) -> tuple[str, ...]:
    """The packages that made an output (by its `provenance.json`) in another version than `requirements.lock` has."""
    if not LOCK.exists():
        return ()
    pinned = locked_versions(storage.read_text(LOCK))
    paths_by_package: dict[str, list[str]] = {}
    for output in outputs:
        path = Path(output.path) / "provenance.json"
        for package, version in (storage.read_json(path)["versions"] if path.exists() else {}).items():
            public = version.split("+")[0]  # a local build has a suffix: 2.13.0+cpu
            expected = pinned.get(normal_name(package), public)
            if public != expected:
                paths_by_package.setdefault(f"{package} {version} (the lock has {expected})", []).append(output.path)
    return tuple(f"{package} made {', '.join(paths)}" for package, paths in sorted(paths_by_package.items()))


def stage_of(study: Study, path: str) -> str:
    """The stage that writes an output folder, as DVC calls it."""
    return "@".join(Path(path).relative_to(study.out).parts)


def claims(outputs: Sequence[Output], known: dict[str, Any]) -> tuple[Claim, ...]:
    """The claims that an audit of this run judged, in the table's order."""
    rows = []
    for output in outputs:
        table = Path(output.path) / "claims.csv"
        try:
            now = verdicts(table) if table.exists() else {}
        except Problem:  # a damaged table: its output differs and says why
            now = {}
        # Where the bytes are the reference's, so is every verdict.
        same = {name: row["verdict"] for name, row in now.items()} if output.verdict == "identical" else None
        before = same or known.get(output.path, {}).get("claims", {})
        rows += [
            Claim(name, row["location"], row["reported"], row["recomputed"], row["verdict"], before.get(name))
            for name, row in now.items()
        ]
    return tuple(rows)


def reference(study: Study) -> dict[str, Any] | None:
    """The study's reference as in git's HEAD, or without a commit the file in the working folder; None if there is none."""
    path = reference_of(study)
    if head() is None:
        return dict(storage.read_json(path)) if path.exists() else None
    text = committed(path)
    return None if text is None else dict(json.loads(text))


def compare(study: Study) -> Comparison | None:
    """Compare the outputs that are here with what is committed; None if nothing is committed. Raises Problem without outputs."""
    lock, known = committed(lock_of(study)), reference(study)
    if known is None:
        if lock is None:
            return None
        raise Problem(
            str(reference_of(study)), "no such file", "the reference of the committed run", f"git checkout {reference_of(study)}"
        )
    now = outputs(storage.read_text(lock_of(study)))
    then = {path: (stage_of(study, path), "") for path in known} if lock is None else outputs(lock)
    results = [judged(study, path, stage, known, locked=now.get(path) == (stage, md5)) for path, (stage, md5) in then.items()]
    if not any(output.here for output in results):
        raise Problem(str(study.out), "no output of the study", "the outputs of a run", "run ./reproduce.sh first")
    added = sorted(now.keys() - then.keys())
    if lock is None:
        against: Literal["reference", "reference here"] = "reference here" if head() is None else "reference"
        return Comparison(against, tuple(results), claims(results, known), tuple(added), other_packages(results))
    results += [Output(path, now[path][0], "differs", ("not in the committed lock",)) for path in added]
    return Comparison("lock", tuple(results), claims(results, known), (), other_packages(results))
