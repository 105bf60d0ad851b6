"""`./reproduce.sh`: run a whole study through DVC, then compare it with the committed one.

DVC runs in this very process, so that whoever stops this process stops the run. What a killed run may leave behind (a torn
lock file) is repaired before the next run.
"""

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import psutil
from dvc.cli import main as dvc
from dvc.exceptions import DvcException
from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro
from dvc.utils.serialize import modify_yaml

from mi_llm import storage
from mi_llm.audit.verdict import VERDICTS
from mi_llm.certificate.certify import certify
from mi_llm.compare import lock_of, outputs, stages
from mi_llm.digests import digests
from mi_llm.disk import held, link_bases, repository
from mi_llm.engine.estimate import duration
from mi_llm.git import committed, head
from mi_llm.parent import RUN
from mi_llm.problem import Problem
from mi_llm.progress import Stages
from mi_llm.study import Study, file_of, load

SHIPPED = ("data.dvc", "pretrain/dvc.yaml")  # what cannot be recomputed: sample corpora, recorded answers, tiny models
AUDIT = ("audit", "miti")  # the stages of ./reproduce.sh audit
AUDIT_MINUTES = 3  # measured on two CPU cores with a mirror folder


def chosen(name: str) -> Study:
    """The study that a name on the command line means."""
    if name == "auto":
        from mi_llm.doctor import machine

        name = "paper" if machine().gpu and machine().engine else "mini"
        print(f"chosen for this machine: {name}", file=sys.stderr)
    params = file_of(Path("paper" if name == "audit" else name))
    if not params.is_file():
        known = sorted(str(path.parent) for path in Path().glob("*/publish.yaml"))  # pretrain/ is no study and has none
        raise Problem(name, "no such study", f"auto, audit, paper, {', '.join(known)}", "correct the name")
    return load(params)


def mend(study: Study) -> None:
    """Repair DVC's own files after a process was killed in the middle of a write, and bring outputs back that are gone."""
    rwlock = Path(".dvc/tmp/rwlock")
    try:
        json.loads(rwlock.read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except ValueError:
        rwlock.unlink()
    # DVC makes a run's folder before the run's file, and ends with a TypeError where the file is missing
    with repository() as repo:
        for folder in Path(repo.stage_cache.cache_dir).glob("??/*"):
            if not any(folder.iterdir()):
                folder.rmdir()
    lock = lock_of(study)
    try:
        if lock.exists():
            stages(storage.read_text(lock))
    except Problem as damage:
        before = committed(lock)
        lock.unlink() if before is None else storage.write_text(lock, before)
        instead = "removed: every stage runs" if before is None else "replaced by the committed one"
        print(f"{lock} was damaged ({damage.found}), and is {instead}", file=sys.stderr)
    bring_back(study)


def bring_back(study: Study) -> None:
    """Put finished outputs that are gone from this folder back from DVC's cache, where it has them whole.

    `dvc repro` would compute those that it marks as `persist` again.
    """
    lock = lock_of(study)
    gone = {path for path in outputs(storage.read_text(lock)) if not Path(path).exists()} if lock.exists() else set()
    if gone:
        with repository() as repo:
            outs = [out for stage in repo.stage.collect(str(study.beside("dvc.yaml"))) for out in stage.outs if str(out) in gone]
            whole = [str(out) for out in outs if not out.changed_cache()]
        if whole:
            dvc(["checkout", "--quiet", *whole])


def prepare() -> None:
    """Check that git works, where this is a repository; elsewhere (a downloaded zip file) tell DVC to do without git."""
    head()
    if not Path(".git").exists() and dvc(["config", "--local", "core.no_scm", "true"]):
        raise Problem(".dvc/config.local", "could not be set", "core.no_scm, for a folder without git", "see DVC's message above")


def pull_shipped(*targets: str) -> None:
    """Fetch what cannot be recomputed; where that fails, once more aloud, so that DVC says why."""
    if dvc(["pull", "--quiet", *targets]) and dvc(["pull", *targets]):
        expected = f"{', '.join(targets)} in the remote `store`"
        raise Problem("dvc pull", "the bundle's data could not be fetched", expected, "see DVC's message above")


def put_in_order(lock: Path) -> None:
    """Sort the lock's stages by name: DVC writes them in the order in which it happened to run them."""
    names = list(stages(storage.read_text(lock)))
    if names != sorted(names):
        with modify_yaml(str(lock)) as content:
            content["stages"] = {name: content["stages"][name] for name in sorted(names)}


def wait_for_others(study: Study) -> None:
    """Wait for the runs in this repository that began earlier: two at once would undo each other's outputs."""
    verbs = {"reproduce", "pretrain", *storage.read_yaml(study.beside("dvc.yaml"))["stages"]}
    waiting = False
    while other_runs := [
        process for process in psutil.process_iter(["cmdline", "cwd", "create_time"]) if earlier_run(process, verbs)
    ]:
        if not waiting:
            print(f"another run works in this folder (process {other_runs[0].pid}); waiting for it to end", file=sys.stderr)
            waiting = True
        time.sleep(1)


def earlier_run(process: psutil.Process, verbs: set[str]) -> bool:
    """Whether a process is a run or a stage (one of these verbs of `mi-llm`) in this repository that began before this run."""
    me = psutil.Process()
    words = process.info["cmdline"] or []
    return (
        any(Path(word).name == "mi-llm" and verb in verbs for word, verb in pairwise(words[:3]))
        and process.info["cwd"] == str(Path.cwd())
        and (process.info["create_time"], process.pid) < (me.create_time(), me.pid)
    )


def fetched(target: str) -> int:
    """Take a target's finished outputs from their remotes; returns DVC's status.

    An output of which the remote lacks a file is left to be computed. Each file is asked for, since DVC takes the files of a
    folder for granted where their list is there.
    """
    whole: list[str] = []
    with repository() as repo:
        outs = [out for stage in repo.stage.collect(target) for out in stage.outs if out.use_cache and out.hash_info]
        for name in {out.remote for out in outs}:
            remote = repo.cloud.get_remote_odb(name)
            hashes = {str(out): {out.hash_info.value} for out in outs if out.remote == name}
            there = set(remote.oids_exist(set().union(*hashes.values())))
            for out in outs:
                if out.remote == name and out.is_dir_checksum and out.hash_info.value in there:
                    hashes[str(out)] |= {file.value for _, _, file in out.get_dir_cache()}
            there |= set(remote.oids_exist(set().union(*hashes.values()) - there))
            whole += [path for path, needed in hashes.items() if needed <= there]
    return int(dvc(["pull", *whole])) if whole else 0


def targets(study: Study) -> list[str]:
    """What DVC is asked to make, in this order: all at once, but the hub's models one by one, each linked before the next.

    Whether there are training dialogs is known after `split`: without any, no weights are fetched.
    """
    pipeline = str(study.beside("dvc.yaml"))
    if not study.from_hub:
        return [pipeline]
    return [f"{pipeline}:split", *(f"{pipeline}:base@{model}" for model in study.from_hub), pipeline]


@contextmanager
def told(seconds: float, *wanted: str) -> Iterator[None]:
    """Say at each stage that DVC begins in this block which one it is, of those that it goes through for these targets."""
    with repository() as repo:
        stages_wanted = [stage for target in wanted for stage in collect_stages(repo, [target])]
        plan = [stage.addressing for stage in plan_repro(get_active_graph(repo.index.graph), stages_wanted)]
    handler = Stages(plan, seconds, sys.stderr)
    logging.getLogger("dvc").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("dvc").removeHandler(handler)


def retry_missing(study: Study) -> None:
    """Try again to acquire what an earlier run could not get: DVC does not see that a network or mirror folder is there now."""
    pipeline = study.beside("dvc.yaml")
    for corpus in study.acquire.upstream:
        table = study.path("acquire", corpus, "missing.csv")
        if table.exists() and len(storage.read_text(table).splitlines()) > 1:
            dvc(["repro", "--quiet", "--force", "--single-item", f"{pipeline}:acquire@{corpus}"])


def audit(study: Study) -> int:
    """Run what needs no models, no key, no weights: the audit, and the coding of the released dialogs (`miti`); compare."""
    print(
        f"\nThe paper against its released data\n"
        f"  fetches the public corpora and the authors' release (from MI_LLM_MIRROR, else over the network)\n"
        f"  writes  {study.out}/ and DVC's cache, .dvc/cache/; nothing outside this folder\n"
        f"  takes   3 GB of disk, {AUDIT_MINUTES} minutes\n",
        file=sys.stderr,
    )
    wait_for_others(study)
    mend(study)
    pull_shipped(SHIPPED[0])
    retry_missing(study)
    if not finished(study, *AUDIT):
        wanted = [f"{study.beside('dvc.yaml')}:{stage}" for stage in AUDIT]
        with told(AUDIT_MINUTES * 60, *wanted):
            status = dvc(["repro", *wanted])
        if status:
            message = "the audit stopped; the message above says why. What is done is kept: run the same command again."
            print(f"\n{message}", file=sys.stderr)
            return int(status)
        put_in_order(lock_of(study))
    numbers = storage.read_json(study.path("audit", "metrics.json"))
    tally = ", ".join(f"{numbers[verdict]} {verdict}" for verdict in VERDICTS)
    print(f"\n{numbers['claims']} claims: {tally}\npage: {study.out}/audit/index.html")
    print(f"coders against AnnoMI's experts, and the released dialogs coded: {study.out}/miti/")
    return certify(study)


def accept_licenses(study: Study) -> None:
    """Ask for the licenses of all models whose weights are still to be fetched, so that nobody is asked hours later."""
    from mi_llm.models import hub

    for model in study.from_hub:
        entry = hub.entry_of(study, model)
        if not hub.in_place(study, model, entry):
            hub.accept_license(study, model, entry)


def pin_new(study: Study) -> None:
    """Ask the hub for the sizes and hashes of models that have no pins yet, at their first use."""
    from mi_llm.models.pin import pin

    known = study.pins()
    for model in study.from_hub:
        entry = study.models[model]
        if entry.commit not in known:
            pin(study, entry.hub, entry.revision, model)


def plan(study: Study, needed: str) -> None:
    """Print what will happen, where, what it takes, what is needed, and what it will produce."""
    free, holds = shutil.disk_usage(Path.cwd()).free / 1e9, held(study)
    expect = study.expect
    print(
        f"\n{study.title}\n"
        f"  runs    the stages of {study.beside('dvc.yaml')} that are not done yet\n"
        f"  writes  {study.out}/ and DVC's cache, .dvc/cache/; nothing outside this folder\n"
        f"  takes   {expect.disk_gb:g} GB of disk ({holds:.1f} GB are taken already, {free:.0f} GB are free)\n"
        f"          and {duration(expect.minutes / 60)} ({expect.measured_on})\n"
        f"  stops   at any moment (Ctrl-C), and continues when run again\n"
        f"  needs\n{needed}\n",
        file=sys.stderr,
    )


def finished(study: Study, *stages: str) -> bool:
    """Whether nothing is left to run, of all or for these stages: DVC finds no change once the code's digests are renewed."""
    pipeline = str(study.beside("dvc.yaml"))
    wanted = [f"{pipeline}:{stage}" for stage in stages] or [pipeline]
    if not study.folder.exists():
        return False
    digests(study)
    try:
        with repository() as repo:
            return bool(repo.status(wanted, with_deps=bool(stages)) == {f"{pipeline}:digests": ["always changed"]})
    except DvcException:  # the run says it
        return False


def run(study: Study, yes: bool, pull: bool) -> int:
    """Fetch and make what is not done yet; returns the exit status: 0 all is done, 1 the run was declined, else DVC's."""
    from mi_llm.doctor import fitting, machine
    from mi_llm.needs import listed, needs, outlook

    pull_shipped(*SHIPPED)
    pin_new(study)
    study_needs = needs(study, machine())
    if missing := fitting(study, machine(), [] if pull else study_needs):  # what is finished elsewhere needs nothing here
        optional = "".join(f"\n  - not needed to begin: {line}" for line in outlook(study_needs))
        raise Problem(
            f"study {study.name}",
            "this is missing:" + "".join(f"\n  - {line}" for line in missing) + optional,
            "everything that the run needs",
            "get it, and run the same command again; or run ./reproduce.sh mini, which needs none of it",
        )
    plan(study, listed(study, study_needs))
    if not yes and study.expect.minutes > 60 and sys.stdin.isatty() and input("Start? [y/N] ").strip().lower() != "y":
        return 1
    accept_licenses(study)
    lock = lock_of(study)  # outputs that are here, though not in DVC's cache (from the archive, say), are taken as they are
    here = pull and lock.exists() and all(Path(path).exists() for path in outputs(storage.read_text(lock)))
    with told(study.expect.minutes * 60, *targets(study)):
        for target in targets(study):
            status = fetched(target) if pull and not here else 0
            if status := status or dvc(["repro", target, *(["--allow-missing"] if here else [])]):
                message = "the run stopped; the message above says why. What is done is kept: run the same command again."
                print(f"\n{message}", file=sys.stderr)
                return int(status)
            link_bases(study)
    put_in_order(lock_of(study))
    return 0


def reproduce(name: str, yes: bool, pull: bool) -> int:
    """Pull, run, compare; returns the exit status: 0 nothing differs, 1 something does (or the run was declined), else DVC's."""
    study = chosen(name)
    prepare()
    os.environ[RUN] = str(os.getpid())
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ["SHELL"] = shutil.which("bash") or "/bin/sh"  # bash runs a stage in its own place: no shell is left in between
    if name == "audit":
        return audit(study)
    wait_for_others(study)
    mend(study)
    retry_missing(study)
    if finished(study):
        print(f"\n{study.title}: all stages are done, nothing has changed", file=sys.stderr)
    elif status := run(study, yes=yes, pull=pull):
        return status
    print(f"\nreport: {study.out}/report/index.html")
    return certify(study)
