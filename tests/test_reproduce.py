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
from ruamel.yaml import YAML

from mi_llm.compare import stages
from mi_llm.reproduce import mend
from mi_llm.study import load

ROOT = Path(__file__).parent.parent
COMMAND = [str(Path(sys.executable).parent / "mi-llm"), "reproduce"]


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
def small(clone: Path) -> Path:
    """A study of the same stages that takes seconds: one model, few dialogs, one epoch."""
    text = (ROOT / "mini" / "params.yaml").read_text(encoding="utf-8")
    for old, new in (
        ("name: mini", "name: small"),
        ("params: mini/params.yaml", "params: small/params.yaml"),
        ("out: runs/mini", "out: runs/small"),
        ("corpora: [cpsycound, psydtcorpus, smilechat, psy_insight, efaqa, annomi]", "corpora: [cpsycound, psydtcorpus, annomi]"),
        ("corpora: [cpsycound, efaqa, psy_insight, psydtcorpus, smilechat]", "corpora: [cpsycound, psydtcorpus]"),
        ("models: [tiny-baichuan2, tiny-glm4, tiny-llama3]", "models: [tiny-llama3]"),
        ("    tiny-baichuan2: baichuan2\n    tiny-glm4: glm4\n", ""),
        ("cpsycound: 54", "cpsycound: 8"),
        ("psydtcorpus: 18", "psydtcorpus: 2"),
        ("test_dialogs: 12", "test_dialogs: 2"),
        ("epochs: 4", "epochs: 3"),
        ("save_every: 20", "save_every: 2"),
        ("batch: 128", "batch: 4"),
        ("max_new_tokens: 96", "max_new_tokens: 24"),
    ):
        assert old in text, old
        text = text.replace(old, new)
    (clone / "small").mkdir()
    (clone / "small/params.yaml").write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "dvc.yaml", clone / "small/dvc.yaml")
    shutil.copy(ROOT / "mini/publish.yaml", clone / "small/publish.yaml")
    return clone


def waiting(folder: Path, seconds: float) -> tuple[int | None, str]:
    """What becomes of a run that first waits for others: its status, None while it waits, and what it said."""
    code = """from pathlib import Path
from mi_llm.compare import stages
from mi_llm.reproduce import wait_for_others
from mi_llm.study import load
wait_for_others(load(Path("mini/params.yaml")))"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return None, process.communicate()[1]
    return process.returncode, process.communicate()[1]


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
        assert waiting(clone, 30) == (0, "")
    finally:
        desk.terminate()
        desk.communicate()
    sleeper = tmp_path / "mi-llm"  # it goes by the name of a run, and only waits
    sleeper.write_text("import time\ntime.sleep(60)\n", encoding="utf-8")
    for verb in ("finetune", "reproduce"):
        stage = subprocess.Popen([sys.executable, str(sleeper), verb, "tiny-llama3"], cwd=clone)
        try:
            status, said = waiting(clone, 8)
        finally:
            stage.kill()
            stage.wait()
        assert (status, said) == (None, f"another run works in this folder (process {stage.pid}); waiting for it to end\n")


def test_a_lock_torn_anywhere_is_mended(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small)
    study, lock = load(Path("small/params.yaml")), Path("small/dvc.lock")
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


def test_a_run_killed_at_any_moment_ends_in_the_same_lock(small: Path) -> None:
    began = time.monotonic()
    assert "nothing to compare with" not in run(small, "small")
    whole, lasted = (small / "small/dvc.lock").read_bytes(), time.monotonic() - began
    (small / "small/dvc.lock").unlink()
    shutil.rmtree(small / "runs")
    shutil.rmtree(small / ".dvc/cache/runs")
    chance, kills = random.Random(3), 0
    while kills < 8:
        process = subprocess.Popen(
            [*COMMAND, "small"], cwd=small, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(2 + chance.random() * lasted / 2)
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills >= 2
    run(small, "small")
    assert (small / "small/dvc.lock").read_bytes() == whole


def test_after_a_torn_lock_the_run_ends_as_before(small: Path) -> None:
    lock = small / "small/dvc.lock"
    if not lock.exists():
        run(small, "small")
    whole = lock.read_bytes()
    lock.write_bytes(whole[: len(whole) // 2].rpartition(b"    deps:")[0] + b"    deps:\n    - path: runs\n      hash:")
    (small / ".dvc/tmp/rwlock").write_text('{"read": {', encoding="utf-8")
    run(small, "small")
    assert lock.read_bytes() == whole


def test_the_miniature_gives_the_committed_lock_and_a_third_run_runs_nothing(clone: Path) -> None:
    committed = (clone / "mini/dvc.lock").read_bytes()
    lines = run(clone, "mini").splitlines()
    assert "report: runs/mini/report/index.html" in lines
    assert lines[-1].startswith("compared with the committed lock: ")
    assert lines[-1].endswith(" within tolerance, 0 differ")
    first = (clone / "mini/dvc.lock").read_bytes()
    if " 0 within tolerance" in lines[-1]:
        assert first == committed
    shutil.rmtree(clone / "runs/mini")
    run(clone, "mini")
    assert (clone / "mini/dvc.lock").read_bytes() == first
    assert "Running stage" not in run(clone, "mini")


def test_a_studys_folder_may_have_any_name(clone: Path) -> None:
    folder = clone / "it's 我的 study"
    folder.mkdir()
    text = (ROOT / "mini/params.yaml").read_text(encoding="utf-8")
    for old, new in (
        ("params: mini/params.yaml", f'params: "{folder.name}/params.yaml"'),
        ("out: runs/mini", f'out: "runs/{folder.name}"'),
    ):
        assert old in text, old
        text = text.replace(old, new)
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    for file in ("dvc.yaml", "publish.yaml"):
        shutil.copy(ROOT / "mini" / file, folder / file)
    dvc = str(Path(sys.executable).parent / "dvc")
    subprocess.run([dvc, "pull", "--quiet", "data.dvc"], cwd=clone, check=True)
    subprocess.run([dvc, "repro", "--quiet", f"{folder.name}/dvc.yaml:read@annomi"], cwd=clone, check=True)
    assert (clone / "runs" / folder.name / "read/annomi/dialogs.jsonl").is_file()


def test_tuned_beats_base_for_each_model(clone: Path) -> None:
    paired = pd.read_csv(clone / "runs/mini/score/paired.csv")
    found = paired[paired["second"].str.endswith(" base") & paired["metric"].isin(["bleu_4", "rouge_l"])]
    assert len(found) == 6
    assert (found["lo"] > 0).all(), found.to_string()


@pytest.mark.parametrize(
    "words", [["params", "diff", "--all", "--targets", "mini/params.yaml"], ["metrics", "show"], ["plots", "show"]]
)
def test_dvc_can_show_the_study(clone: Path, words: list[str]) -> None:
    dvc = str(Path(sys.executable).parent / "dvc")
    done = subprocess.run([dvc, *words], cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if words[0] == "metrics":
        assert "runs/mini/score/metrics.json" in done.stdout
    if words[0] == "plots":
        page = clone / "dvc_plots/index.html"
        assert "loss" in page.read_text(encoding="utf-8")


def test_finished_outputs_are_fetched_and_what_the_remote_lacks_is_computed(clone: Path, tmp_path: Path) -> None:
    run(clone, "mini")
    remote = f"[core]\n    remote = lab\n['remote \"lab\"']\n    url = {tmp_path / 'lab'}\n"
    (clone / ".dvc/config.local").write_text(remote, encoding="utf-8")
    for words in (
        [str(Path(sys.executable).parent / "dvc"), "push", "--quiet", "data.dvc", "pretrain/dvc.yaml", "mini/dvc.yaml"],
        [
            "git",
            "-c",
            "user.name=test",
            "-c",
            "user.email=test@example.org",
            "commit",
            "-q",
            "--allow-empty",
            "-m",
            "run",
            "mini",
        ],
        ["git", "clone", "-q", str(clone), str(tmp_path / "bundle")],
    ):
        subprocess.run(words, cwd=clone, check=True, capture_output=True)
    (entry,) = stages((clone / "mini/dvc.lock").read_text(encoding="utf-8"))["score"]["outs"]
    (tmp_path / "lab/files/md5" / entry["md5"][:2] / entry["md5"][2:]).unlink()
    (tmp_path / "bundle/.dvc/config.local").write_text(remote, encoding="utf-8")
    lines = run(tmp_path / "bundle", "mini", "--pull").splitlines()
    assert [line for line in lines if line.startswith("Running stage")] == ["Running stage 'mini/dvc.yaml:score':"]
    assert lines[-1] == "compared with the committed lock: 36 identical, 0 within tolerance, 0 differ"
