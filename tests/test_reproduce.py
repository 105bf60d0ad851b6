"""The one command, in a clone of the repository: the committed lock comes out, whatever interrupts the run."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from edits import edit
from pipeline import ran
from repository import GIT, PROGRAMS, ROOT
from ruamel.yaml import YAML

from mi_llm import storage
from mi_llm.compare import stages
from mi_llm.reproduce import fetched, mend
from mi_llm.study import load

COMMAND = [str(PROGRAMS / "mi-llm"), "reproduce"]
DVC = str(PROGRAMS / "dvc")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh clone of what is committed."""
    folder = tmp_path_factory.mktemp("clone") / "bundle"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    return folder


def run(folder: Path, *words: str) -> str:
    """Run the command to its end; returns what it printed."""
    done = subprocess.run([*COMMAND, *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def quick(clone: Path) -> Path:
    """A study of the same stages that takes seconds: one model, few dialogs, one epoch."""
    (clone / "quick").mkdir()
    for file in ("params.yaml", "dvc.yaml", "publish.yaml"):
        shutil.copy(ROOT / "mini" / file, clone / "quick" / file)
    changes = {
        "name: mini": "name: quick",
        "params: mini/params.yaml": "params: quick/params.yaml",
        "out: runs/mini": "out: runs/quick",
        "  smilechat: {}\n  psy_insight: {}\n  efaqa: {}\n": "",
        "corpora: [cpsycound, efaqa, psy_insight, psydtcorpus, smilechat]": "corpora: [cpsycound, psydtcorpus]",
        "  tiny-baichuan2: {chat_format: baichuan2, license: cc0-1.0}\n": "",
        "  tiny-glm4: {chat_format: glm4, license: cc0-1.0}\n": "",
        "models: [tiny-glm4]": "models: [tiny-llama3]",
        "cpsycound: 54": "cpsycound: 8",
        "psydtcorpus: 18": "psydtcorpus: 2",
        "test_dialogs: 12": "test_dialogs: 2",
        "epochs: 4": "epochs: 3",
        "save_every: 20": "save_every: 2",
        "batch: 128": "batch: 4",
        "max_new_tokens: 96": "max_new_tokens: 24",
    }
    edit(clone / "quick/params.yaml", changes)
    return clone


WAITING = """from pathlib import Path
from mi_llm.compare import stages
from mi_llm.reproduce import wait_for_others
from mi_llm.study import load
wait_for_others(load(Path("mini/params.yaml")))"""


def test_a_run_waits_for_other_runs_and_not_for_an_open_desk(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "packets").mkdir()
    turns = [{"role": "client", "text": "累"}, {"role": "counselor", "text": "您累了。"}]
    (tmp_path / "packets/k7f3q2.json").write_text(json.dumps({"packet": "k7f3q2", "turns": turns}), encoding="utf-8")
    (tmp_path / "packets/raters.json").write_text('{"rater-1": ["k7f3q2"]}', encoding="utf-8")
    where = ["--packets", str(tmp_path / "packets"), "--data", str(tmp_path / "data"), "--port", "0"]
    desk = subprocess.Popen([COMMAND[0], "desk", *where], cwd=clone, stdout=subprocess.PIPE, text=True)
    try:
        assert desk.stdout
        assert any(line.startswith("The desk is open") for line in desk.stdout)
        done = subprocess.run([sys.executable, "-c", WAITING], cwd=clone, capture_output=True, text=True, timeout=60, check=True)
        assert done.stderr == ""
    finally:
        desk.terminate()
        desk.communicate()
    sleeper = tmp_path / "mi-llm"  # it goes by the name of a run, and only waits
    sleeper.write_text("import time\ntime.sleep(600)\n", encoding="utf-8")
    for verb in ("finetune", "reproduce"):
        stage = subprocess.Popen([sys.executable, str(sleeper), verb, "tiny-llama3"], cwd=clone)
        run = subprocess.Popen([sys.executable, "-c", WAITING], cwd=clone, stderr=subprocess.PIPE, text=True)
        try:
            assert run.stderr
            notice = run.stderr.readline()
            assert notice == f"another run works in this folder (process {stage.pid}); waiting for it to end\n"
            assert run.poll() is None
            stage.kill()
            stage.wait()
            assert run.communicate(timeout=60)[1] == ""
            assert run.returncode == 0
        finally:
            for process in (stage, run):
                process.kill()
                process.wait()


@pytest.mark.slow
def test_a_lock_torn_anywhere_is_mended(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(quick)
    study, lock = load(Path("quick/params.yaml")), Path("quick/dvc.lock")
    whole, kept = Path("mini/dvc.lock").read_text(encoding="utf-8"), 0
    for size in range(600):  # among them, every kind of line
        lock.write_text(whole[:size], encoding="utf-8")
        mend(study)
        if lock.exists():
            COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(lock))
            assert lock.read_text(encoding="utf-8") == whole[:size]
            kept += 1
            lock.unlink()
    assert 0 < kept < 600


def test_a_folder_of_runs_that_a_kill_left_empty_is_removed(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(quick)
    empty, whole = Path(".dvc/cache/runs/ab/abc"), Path(".dvc/cache/runs/cd/cde/file")
    empty.mkdir(parents=True)
    whole.parent.mkdir(parents=True)
    whole.write_text("cmd: true\n", encoding="utf-8")
    mend(load(Path("quick/params.yaml")))
    assert not empty.exists()
    assert whole.exists()
    shutil.rmtree(whole.parent.parent)


def test_a_lock_with_conflict_markers_is_replaced_and_the_run_says_so(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(clone)
    lock = Path("mini/dvc.lock")
    whole = lock.read_text(encoding="utf-8")
    lock.write_text(f"<<<<<<< HEAD\n{whole}=======\n{whole}>>>>>>> theirs\n", encoding="utf-8")
    mend(load(Path("mini/params.yaml")))
    assert lock.read_text(encoding="utf-8") == whole
    errors = capsys.readouterr().err
    assert errors.startswith("mini/dvc.lock was damaged (not YAML: ")
    assert errors.endswith("), and is replaced by the committed one\n")


def test_a_downloaded_zip_file_without_git_works(clone: Path, tmp_path: Path) -> None:
    subprocess.run(f"git archive HEAD | tar x -C {tmp_path}", cwd=clone, shell=True, check=True)
    script = "from mi_llm.reproduce import prepare, pull_shipped\nprepare()\npull_shipped('data.dvc')"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    subprocess.run([DVC, "repro", "--quiet", "mini/dvc.yaml:read@annomi"], cwd=tmp_path, check=True)
    assert (tmp_path / "runs/mini/read/annomi/dialogs.jsonl").is_file()


def test_why_dvc_cannot_fetch_is_shown(clone: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(clone, tmp_path / "bundle", symlinks=True)
    shutil.rmtree(bundle / "store")
    shutil.rmtree(bundle / ".dvc/cache", ignore_errors=True)
    done = subprocess.run([*COMMAND, "mini"], cwd=bundle, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    message, problem = done.stderr.split("mi-llm: dvc pull: ")
    assert "ERROR" in message
    assert "see DVC's message above" in problem


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_in_the_same_lock(quick: Path) -> None:
    began = time.monotonic()
    assert "nothing to compare with" not in run(quick, "quick")
    whole, lasted = (quick / "quick/dvc.lock").read_bytes(), time.monotonic() - began
    (quick / "quick/dvc.lock").unlink()
    shutil.rmtree(quick / "runs")
    shutil.rmtree(quick / ".dvc/cache/runs")
    chance, kills = random.Random(3), 0
    while kills < 4:
        process = subprocess.Popen(
            [*COMMAND, "quick"], cwd=quick, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(2 + chance.random() * lasted / 2)
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills >= 2
    run(quick, "quick")
    assert (quick / "quick/dvc.lock").read_bytes() == whole


def test_a_studys_folder_may_have_any_name(clone: Path) -> None:
    folder = clone / "it's 我的 study"
    folder.mkdir()
    for file in ("params.yaml", "dvc.yaml", "publish.yaml"):
        shutil.copy(ROOT / "mini" / file, folder / file)
    own = {"params: mini/params.yaml": f'params: "{folder.name}/params.yaml"', "out: runs/mini": f'out: "runs/{folder.name}"'}
    edit(folder / "params.yaml", own)
    subprocess.run([DVC, "pull", "--quiet", "data.dvc"], cwd=clone, check=True)
    subprocess.run([DVC, "repro", "--quiet", f"{folder.name}/dvc.yaml:read@annomi"], cwd=clone, check=True)
    assert (clone / "runs" / folder.name / "read/annomi/dialogs.jsonl").is_file()


# ---- the miniature's own run, and copies of it


@pytest.fixture
def copy(miniature: Path, tmp_path: Path) -> Path:
    """A copy of the clone in which the miniature has run, to be changed."""
    return shutil.copytree(miniature, tmp_path / "miniature", symlinks=True)


def test_the_miniature_gives_the_committed_lock_and_the_next_run_runs_nothing(miniature: Path, copy: Path) -> None:
    lines = (miniature.parent / "run.txt").read_text(encoding="utf-8").splitlines()
    assert "report: runs/mini/report/index.html" in lines
    assert lines[-1].startswith("compared with the committed lock: ")
    assert lines[-1].endswith(" within tolerance, 0 differ")
    first = (miniature / "mini/dvc.lock").read_bytes()
    if " 0 within tolerance" in lines[-1]:
        shown = subprocess.run([*GIT, "show", "HEAD:mini/dvc.lock"], cwd=miniature, capture_output=True, check=True)
        assert shown.stdout == first
    assert ran(run(copy, "mini")) == []
    assert (copy / "mini/dvc.lock").read_bytes() == first


def test_outputs_that_were_removed_come_back_without_a_run(miniature: Path, copy: Path) -> None:
    shutil.rmtree(copy / "runs/mini")
    assert ran(run(copy, "mini")) == []
    assert (copy / "mini/dvc.lock").read_bytes() == (miniature / "mini/dvc.lock").read_bytes()
    assert (copy / "runs/mini/report/index.html").is_file()


@pytest.mark.slow
def test_after_a_torn_lock_the_run_ends_as_before(copy: Path) -> None:
    lock = copy / "mini/dvc.lock"
    whole = lock.read_bytes()
    lock.write_bytes(whole[: len(whole) // 2].rpartition(b"    deps:")[0] + b"    deps:\n    - path: runs\n      hash:")
    (copy / ".dvc/tmp/rwlock").write_text('{"read": {', encoding="utf-8")
    subprocess.run([*GIT, "rm", "-q", "--cached", "mini/dvc.lock"], cwd=copy, check=True)
    subprocess.run([*GIT, "commit", "-q", "-m", "no lock to take in its place"], cwd=copy, check=True)
    run(copy, "mini")
    assert lock.read_bytes() == whole


def test_tuned_beats_base_for_each_model(miniature: Path) -> None:
    paired = pd.read_csv(miniature / "runs/mini/score/paired.csv")
    gains = paired[paired["second"].str.endswith(" base") & paired["metric"].isin(["bleu_4", "rouge_l"])]
    assert len(gains) == 6
    assert (gains["lo"] > 0).all(), gains.to_string()


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["params", "diff", "--all", "--targets", "mini/params.yaml"], ""),
        (["metrics", "show"], "runs/mini/score/metrics.json"),
        (["plots", "show"], "index.html"),
    ],
)
def test_dvc_can_show_the_study(copy: Path, words: list[str], shown: str) -> None:
    done = subprocess.run([DVC, *words], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    if words[0] == "plots":
        assert "loss" in (copy / "dvc_plots/index.html").read_text(encoding="utf-8")


PIPELINE = """stages:
  whole: {cmd: mkdir whole && echo 1 > whole/a && echo 2 > whole/b, outs: [whole]}
  torn: {cmd: mkdir torn && echo 3 > torn/a && echo 4 > torn/b, outs: [torn]}
"""


@pytest.mark.slow
def test_of_a_remote_that_lacks_a_file_everything_else_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    remote = str(tmp_path / "remote")
    for words in (["init", "-q", "--no-scm"], ["remote", "add", "-d", "lab", remote], ["repro", "-q"], ["push", "-q"]):
        subprocess.run([DVC, *words], check=True)
    md5 = storage.md5(Path("torn/b"))
    (tmp_path / "remote/files/md5" / md5[:2] / md5[2:]).unlink()
    for folder in ("whole", "torn", ".dvc/cache"):
        shutil.rmtree(folder)
    assert fetched("dvc.yaml") == 0
    assert Path("whole/b").read_text(encoding="utf-8") == "2\n"
    assert not Path("torn").exists()


@pytest.mark.slow
def test_finished_outputs_are_fetched_and_what_the_remote_lacks_is_computed(copy: Path, tmp_path: Path) -> None:
    remote = f"[core]\n    remote = lab\n['remote \"lab\"']\n    url = {tmp_path / 'lab'}\n"
    (copy / ".dvc/config.local").write_text(remote, encoding="utf-8")
    for words in (
        [DVC, "push", "--quiet", "data.dvc", "pretrain/dvc.yaml", "mini/dvc.yaml"],
        [*GIT, "commit", "-q", "--allow-empty", "-m", "run", "mini"],
        [*GIT, "clone", "-q", str(copy), str(tmp_path / "bundle")],
    ):
        subprocess.run(words, cwd=copy, check=True, capture_output=True)
    lock = stages((copy / "mini/dvc.lock").read_text(encoding="utf-8"))
    listed = [
        tmp_path / "lab/files/md5" / md5[:2] / md5[2:] for name in ("score", "summary") for md5 in [lock[name]["outs"][0]["md5"]]
    ]
    listed[0].unlink()  # of one output the list of its files, of the other a file
    (table,) = [file["md5"] for file in storage.read_json(listed[1]) if file["relpath"] == "table_6.csv"]
    (tmp_path / "lab/files/md5" / table[:2] / table[2:]).unlink()
    (tmp_path / "bundle/.dvc/config.local").write_text(remote, encoding="utf-8")
    printed = run(tmp_path / "bundle", "mini", "--pull")
    assert sorted(ran(printed)) == ["mini/dvc.yaml:score", "mini/dvc.yaml:summary"]
    assert printed.splitlines()[-1] == "compared with the committed lock: 37 identical, 0 within tolerance, 0 differ"
