"""`dvc push` and `dvc pull` against real servers, interrupted and not; what a pull for a purpose brings, what no push takes."""

import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from dvc.repo import Repo
from remote_servers import KINDS, Relay, Server, StrictS3, free_port, need
from repository import GIT, PROGRAMS, ROOT
from ruamel.yaml import YAML

from mi_llm.digests import OPTIONAL
from mi_llm.study import load

DVC = [sys.executable, "-m", "dvc"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's keys, agents, proxies or settings but the test's."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("SSH_AUTH_SOCK", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "AWS_PROFILE", "DVC_REMOTE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # s3fs tries again on top of what its client does


@pytest.fixture
def serving() -> Iterator[Callable[[type[Server]], Server]]:
    """Starts a server in a folder of its own (a short path), and ends it after the test."""
    with ExitStack() as stack:

        def start(kind: type[Server]) -> Server:
            server = kind(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="remote-"))))
            stack.callback(server.kill)
            return server

        yield start


def run(folder: Path, *words: str, expect: int | None = 0) -> str:
    """Run a DVC command in a repository; returns all it said."""
    done = subprocess.run([*DVC, *words], cwd=folder, capture_output=True, text=True, timeout=120)
    output = done.stdout + done.stderr
    assert expect is None or done.returncode == expect, output
    assert "Traceback" not in output, output
    return output


def commit(folder: Path) -> None:
    subprocess.run([*GIT, "add", "--all"], cwd=folder, check=True)
    subprocess.run([*GIT, "commit", "--quiet", "--message", "test"], cwd=folder, check=True)


def repository(folder: Path, sizes: list[int]) -> Path:
    """A DVC repository with a folder of random files of these sizes in bytes."""
    chance = random.Random(5)
    (folder / "data").mkdir(parents=True)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    run(folder, "init", "--quiet")
    for number, size in enumerate(sizes):
        (folder / f"data/{number:04}.bin").write_bytes(chance.randbytes(size))
    run(folder, "add", "--quiet", "data")
    commit(folder)
    return folder


def clone(source: Path) -> Path:
    target = source.with_name(f"{source.name}-clone")
    subprocess.run(["git", "clone", "--quiet", source, target], check=True)
    return target


def remote(folder: Path, url: str, settings: dict[str, str] | None = None) -> None:
    """Make an address the clone's default remote, as `dvc remote add --local --default` and `dvc remote modify --local` do."""
    lines = ["[core]", "remote = lab", "['remote \"lab\"']", f"url = {url}"]
    lines += [f"{name} = {value}" for name, value in ({"verify": "true"} | (settings or {})).items()]
    (folder / ".dvc/config.local").write_text("\n".join(lines) + "\n", encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "data").iterdir()}


def interrupted(folder: Path, verb: str, relay: Relay, stop: Callable[[subprocess.Popen[str]], None]) -> str:
    """Start a push or a pull through the relay, stop it in the middle, and return what it said."""
    relay.hold_after(2_000_000)
    process = subprocess.Popen([*DVC, verb], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert relay.held.wait(60), "nothing came through the relay"
    stop(process)
    relay.cut()
    output, _ = process.communicate(timeout=100)
    assert process.returncode != 0, output
    assert "Traceback" not in output, output
    return output


@pytest.mark.parametrize("kind", ["http", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("s3", "ssh", "webdav"))])
def test_a_push_and_a_pull_broken_in_the_middle_are_taken_up_again(
    kind: str, tmp_path: Path, serving: Callable[[type[Server]], Server]
) -> None:
    need(kind)
    server = serving(KINDS[kind])
    relay = Relay(server.port)
    source = repository(tmp_path / "source", [20_000_000, *[30_000] * 20])
    target = clone(source)
    for folder in (source, target):
        remote(folder, server.url(relay.port), server.options(relay.port))

    interrupted(source, "push", relay, lambda process: process.send_signal(signal.SIGKILL))
    assert "pushed" in run(source, "push")
    assert "failed" in interrupted(target, "pull", relay, lambda _: server.kill()).lower()
    server.start()
    if not server.remembers:
        run(source, "push")
    run(target, "pull")
    assert contents(target) == contents(source)
    assert "up to date" in run(target, "status", "--cloud") + run(target, "status")


@pytest.mark.slow
def test_a_folder_is_a_remote_and_a_killed_push_is_taken_up_again(tmp_path: Path) -> None:
    source = repository(tmp_path / "source", [5_000] * 1500)
    target, shared = clone(source), tmp_path / "shared"
    for folder in (source, target):
        remote(folder, str(shared))
    process = subprocess.Popen([*DVC, "push", "--jobs", "1"], cwd=source, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(shared.rglob("*"))) < 20:
        assert process.poll() is None
    process.kill()
    process.wait()
    arrived = sum(1 for file in shared.rglob("*") if file.is_file())
    assert arrived < 1500
    run(source, "push")
    run(target, "pull")
    assert contents(target) == contents(source)


@pytest.mark.parametrize(
    ("kind", "wrong", "refused", "nobody"),
    [
        ("ssh", {"keyfile": "stranger"}, "Permission denied for user", "Connect call failed"),
        ("http", {"password": "wrong"}, "401, message='Unauthorized'", "Cannot connect to host"),
        ("webdav", {"password": "wrong"}, "received 401 (Unauthorized)", "Connection refused"),
        ("s3", {"access_key_id": "stranger"}, "Forbidden", "Could not connect to the endpoint URL"),
    ],
)
def test_what_dvc_says_to_a_wrong_key_and_where_nobody_listens(
    kind: str, wrong: dict[str, str], refused: str, nobody: str, tmp_path: Path, serving: Callable[[type[Server]], Server]
) -> None:
    need(kind)
    source = repository(tmp_path / "source", [100])
    server = serving(StrictS3 if kind == "s3" else KINDS[kind])
    if kind == "ssh":
        wrong = {"keyfile": str(server.folder / "stranger")}
    remote(source, server.url(server.port), server.options(server.port) | wrong)
    assert refused in run(source, "push", expect=None)
    assert not any(file.is_file() for file in (server.folder / "files").rglob("*"))
    port = free_port()
    remote(source, server.url(port), server.options(port))
    assert nobody in run(source, "push", expect=None)
    for text in (refused, nobody):
        assert text in (ROOT / "docs/remotes.md").read_text(encoding="utf-8")


def test_verify_refuses_what_was_damaged_on_the_remote(tmp_path: Path) -> None:
    source = repository(tmp_path / "source", [100, 200])
    target, shared = clone(source), tmp_path / "shared"
    for folder in (source, target):
        remote(folder, str(shared))
    run(source, "push")
    damaged = next(file for file in shared.rglob("*") if file.is_file() and file.stat().st_size == 200)
    damaged.chmod(0o644)
    damaged.write_bytes(bytes(200))
    assert "failed to pull" in run(target, "pull", expect=1)
    assert not (target / "data/0001.bin").exists() or (target / "data/0001.bin").read_bytes() != bytes(200)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as it is here, with a line of text in place of every output of the miniature, known to DVC and git."""
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        if not name.startswith("tests/") and (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    run(folder, "pull", "data.dvc", "pretrain/dvc.yaml")
    stages = [stage for stage in Repo(str(folder)).index.stages if Path(stage.path) == folder / "mini/dvc.yaml"]
    for path in [Path(out.fs_path) for stage in stages for out in stage.outs if stage.name != "digests"]:
        path.mkdir(parents=True)
        (path / "what.txt").write_text(f"{path.relative_to(folder)}\n")
    subprocess.run([sys.executable, "-m", "mi_llm", "digests"], cwd=folder, check=True)
    for path in [Path(dep.fs_path) for stage in stages for dep in stage.deps]:
        if not path.exists():
            file = path if path.suffix else path / "what.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{path.relative_to(folder)}\n")
    run(folder, "commit", "--quiet", "--force", "mini/dvc.yaml")
    commit(folder)
    return folder


def make(folder: Path, target: str, *settings: str) -> None:
    """A target of the Makefile, with the environment of this test in place of .venv."""
    subprocess.run(
        ["make", "--old-file=setup", target, f"BIN={PROGRAMS}", *settings],
        cwd=folder, check=True, capture_output=True, timeout=120,
    )  # fmt: skip


def texts(folder: Path) -> set[str]:
    """The first lines of all small files in a remote."""
    return {file.read_bytes()[:60].decode("utf-8", "replace").strip() for file in folder.rglob("*") if file.is_file()}


def test_a_pull_for_a_purpose_brings_that_and_nothing_else(bundle: Path, tmp_path: Path) -> None:
    shared, target = tmp_path / "shared", tmp_path / "fresh"
    remote(bundle, str(shared))
    run(bundle, "push", "--remote", "lab", "mini/dvc.yaml", "data.dvc", "pretrain/dvc.yaml")
    subprocess.run(["git", "clone", "--quiet", bundle, target], check=True)
    remote(target, str(shared))
    runs = target / "runs/mini"

    make(target, "pull-chat", "REMOTE=lab")
    assert {path.name for path in runs.iterdir()} == {"base", "finetune"}
    assert {path.name for path in (runs / "base").iterdir()} == {path.name for path in (bundle / "runs/mini/base").iterdir()}
    assert not (target / "data").exists()
    make(target, "pull-audit", "REMOTE=lab")
    assert {path.name for path in runs.iterdir()} == {"base", "finetune", "acquire", "read"}
    assert (target / "data/corpora").is_dir()
    make(target, "pull-all", "REMOTE=lab")
    pulled = {path.name for path in runs.iterdir()}
    assert pulled | {"digests.yaml", *OPTIONAL} == {path.name for path in (bundle / "runs/mini").iterdir()}
    subprocess.run([sys.executable, "-m", "mi_llm", "digests"], cwd=target, check=True)
    assert run(target, "status", "mini/dvc.yaml") == DIGESTS_ONLY


def test_no_push_takes_along_what_stays_here(bundle: Path, tmp_path: Path) -> None:
    source, shared = tmp_path / "source", tmp_path / "shared"
    shutil.copytree(bundle, source, symlinks=True)
    lock = (source / "mini/dvc.lock").read_bytes()
    shutil.copy(ROOT / "publish.yaml", source / "mini/publish.yaml")
    assert run(source, "status", "mini/dvc.yaml") == DIGESTS_ONLY, "what may be published says nothing of what was computed"
    remote(source, str(shared))
    run(source, "push", "--remote", "lab", "mini/dvc.yaml")
    run(source, "push", "mini/dvc.yaml")
    carried = {text.split("/")[2] for text in texts(shared) if text.startswith("runs/mini/")}
    assert carried == {"finetune", "respond", "score", "summary"}
    assert (source / "mini/dvc.lock").read_bytes() == lock

    internal = tmp_path / "internal"  # for those who all hold the licenses
    run(source, "remote", "modify", "--local", "here", "url", str(internal))
    run(source, "push", "--remote", "here", "mini/dvc.yaml")
    assert {text.split("/")[2] for text in texts(internal) if text.startswith("runs/mini/")} > {
        "acquire",
        "base",
        "report",
        "score",
    }


DIGESTS_ONLY = "mini/dvc.yaml:digests:\n\talways changed\n"  # what `dvc status` says where nothing else would run
FREE = ("CC0", "CC BY")


@pytest.mark.parametrize("params", ["params.yaml", "released/params.yaml", "mini/params.yaml", "mini-en/params.yaml"])
def test_a_study_with_a_corpus_that_is_not_free_keeps_its_texts_here(params: str) -> None:
    study = load(ROOT / params)
    sources = YAML(typ="safe").load((ROOT / "src/mi_llm/corpora/sources.yaml").read_text(encoding="utf-8"))
    kept = YAML(typ="safe").load((ROOT / params).with_name("publish.yaml").read_text(encoding="utf-8"))["publish"]
    bound = [name for name in study.acquire.upstream if not sources[name]["license"].startswith(FREE)]
    assert (kept["corpora"], kept["texts"]) == (("here", "here") if bound else ("", ""))
    assert kept["models"] == ("here" if study.from_hub else "")
