"""The paper's models from a hub: a real server that speaks the hub's protocol, and every way in which it can go wrong."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import hf_hub_download
from repository import PROGRAMS, ROOT
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from test_convert import baichuan2, sentencepiece_model
from tiny import set_models, study_with
from transformers import AutoModelForCausalLM

from mi_llm import storage
from mi_llm.engine.load import checkpoint, load
from mi_llm.engine.template import LLAMA3
from mi_llm.models import hub
from mi_llm.models.base import base
from mi_llm.models.pretrain import FORMAT_OF
from mi_llm.problem import Problem
from mi_llm.study import Study
from mi_llm.study import load as load_study

REPOSITORY, REVISION = "someone/tiny", "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin", ".model", "tokenizer.json")
NATIVE = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "LICENSE"]


class Hub(ThreadingHTTPServer):
    """One repository at one commit. Large files lie elsewhere, where the hub points to, as on the real one.

    `cuts`: so many answers with more.bin break off in the middle. `denied`: large files are refused. `instead`: what is served
    in place of a file. `asked`: every request for a file, with the range it asked for.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.commit, self.license = files, REVISION, "apache-2.0"
        self.instead: dict[str, list[bytes]] = {}
        self.cuts, self.denied = 0, False
        self.asked: list[tuple[str, str]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def asked_for(self, name: str) -> list[str]:
        """The ranges that were asked for of one file."""
        return [asked_range for asked, asked_range in self.asked if asked == name]


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sibling(name: str, content: bytes) -> dict[str, Any]:
    lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return {"rfilename": name, "size": len(content), "blobId": blob(content)} | ({"lfs": lfs} if name.endswith(LARGE) else {})


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path in (f"/api/models/{REPOSITORY}/revision/{REVISION}", f"/api/models/{REPOSITORY}"):
            siblings = [sibling(name, content) for name, content in self.server.files.items()]
            card = {"license": self.server.license}
            content = {"id": REPOSITORY, "sha": self.server.commit, "siblings": siblings, "cardData": card}
            self.send({}, json.dumps(content).encode())
        elif path.startswith(f"/{REPOSITORY}/resolve/{REVISION}/"):
            self.resolve(path.rpartition("/")[2])
        elif path.startswith("/elsewhere/"):
            self.file(path.rpartition("/")[2])
        else:
            self.send({"X-Error-Code": "RepoNotFound"}, b"", 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def resolve(self, name: str) -> None:
        content, head = self.server.files[name], {"X-Repo-Commit": self.server.commit}
        if name.endswith(LARGE):
            linked = {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content))}
            self.send(
                head | linked | {"Location": f"http://localhost:{self.server.server_address[1]}/elsewhere/{name}"}, b"", 302
            )
        else:
            self.server.asked.append((name, ""))
            self.send(head | {"ETag": f'"{blob(content)}"'}, content)

    def file(self, name: str) -> None:
        asked_range, content = self.headers.get("Range", ""), self.server.files[name]
        self.server.asked.append((name, asked_range))
        if self.server.denied:
            self.send({}, b"", 403)
            return
        if self.server.instead.get(name):
            content = self.server.instead[name].pop(0)
        start = int(asked_range.removeprefix("bytes=").removesuffix("-")) if asked_range else 0
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if asked_range else {}
        if self.server.cuts and name == "more.bin":
            self.server.cuts -= 1
            self.close_connection = True
            self.send(headers, content[start:], 206 if asked_range else 200, most=(len(content) - start) // 2)
        else:
            self.send(headers, content[start:], 206 if asked_range else 200)

    def send(self, head: dict[str, str], content: bytes, status: int = 200, most: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**head, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:most])

    def log_message(self, *words: object) -> None:
        """Say nothing."""


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def serve(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Hub:
    served = Hub({**files, "LICENSE": b"Be kind.", "modeling_tiny.py": b"raise SystemExit"})
    threading.Thread(target=served.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", served.address)
    return served


@pytest.fixture
def server(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a tiny Llama."""
    with serve(files_of(checkpoints / "tiny-llama3"), monkeypatch) as served:
        yield served
        served.shutdown()


def pinned(
    server: Hub,
    name: str = "tiny-llama3",
    *,
    repository: str = REPOSITORY,
    revision: str = REVISION,
    files: Sequence[str] = NATIVE,
    hashed: bool = True,
    sizes: int | None = None,
    **changes: Any,
) -> Study:
    """The miniature with one model of the hub; `changes` to its pins, `sizes`: the bytes that they say of each file."""
    pins: dict[str, Any] = {file: {"bytes": sizes} if sizes else {} for file in files}
    if hashed:
        for file in pins.keys() & {"model.safetensors"}:
            pins[file]["sha256"] = hashlib.sha256(server.files[file]).hexdigest()
    entry = {
        "files": pins,
        "parameters": 47392,
        "shape": {
            "layers": 2,
            "hidden": 32,
            "heads": 4,
            "key_value_heads": 2,
            "intermediate": 64,
            "vocabulary": 900,
            "tied": True,
        },
        "original": {"repository": REPOSITORY, "rope_theta": 500000, "rms_norm_eps": 1e-6},
        "license_file": "LICENSE",
    }
    YAML().dump({f"{repository}@{revision}": entry | changes}, Path("mini/pins.yaml"))
    Path("licenses.yaml").unlink()
    kindness = {"name": "License of Kindness", "address": "https://kind.example", "duties": ["be kind"]}
    YAML().dump({"kindness": kindness}, Path("licenses.yaml"))
    settings = {"chat_format": FORMAT_OF[name].name, "license": "kindness"}
    set_models({name: {"hub": repository, "revision": revision, **settings}})
    return study_with()


@pytest.fixture
def accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MI_LLM_ACCEPT_LICENSES", "other, tiny-llama3,tiny-baichuan2")


def refusal(study: Study, model: str = "tiny-llama3") -> Problem:
    with pytest.raises(Problem) as caught:
        base(study, model)
    assert not (study.folder / "base" / model / "metrics.json").exists()
    return caught.value


@pytest.mark.usefixtures("accepted")
def test_a_model_comes_from_its_pinned_commit_and_loads(server: Hub, checkpoints: Path) -> None:
    study = pinned(server)
    base(study, "tiny-llama3")
    folder, out = checkpoint(study, "tiny-llama3"), study.folder / "base" / "tiny-llama3"
    assert {path.name for path in folder.iterdir()} == {*NATIVE}
    assert (folder / "model.safetensors").read_bytes() == server.files["model.safetensors"]
    assert storage.read_json(out / "metrics.json") == {"parameters": 47392, "revision": REVISION, "vocabulary": 900}
    source = storage.read_json(out / "source.json")
    assert source["sha256"]["config.json"] == hashlib.sha256(server.files["config.json"]).hexdigest()
    assert not {"unverified", "changed"} & {*source}
    assert (out / "LICENCE/LICENSE").read_bytes() == b"Be kind."
    assert sorted(path.name for path in out.parent.iterdir()) == [".tiny-llama3.license.json", "tiny-llama3"]
    assert "modeling_tiny.py" not in dict(server.asked)
    model, tokenizer = load(folder, "float32")
    assert model.config.model_type == "llama"
    assert len(tokenizer) == 900


@pytest.mark.usefixtures("accepted")
def test_a_model_that_came_with_fewer_stop_tokens_gets_those_of_its_format_and_the_source_says_so(server: Hub) -> None:
    server.files["generation_config.json"] = b'{"eos_token_id": 14, "top_p": 0.9}'
    study = pinned(server)
    base(study, "tiny-llama3")
    folder, source = checkpoint(study, "tiny-llama3"), storage.read_json(study.folder / "base/tiny-llama3/source.json")
    stops = LLAMA3.stop_ids(load(folder, "float32")[1])
    assert storage.read_json(folder / "generation_config.json") == {"eos_token_id": stops, "top_p": 0.9}
    assert source["changed"] == ["generation_config.json"]
    assert source["sha256"]["generation_config.json"] == hashlib.sha256(server.files["generation_config.json"]).hexdigest()


@pytest.mark.usefixtures("accepted")
def test_a_cut_connection_goes_on_where_it_broke(server: Hub) -> None:
    server.files["more.bin"] = bytes(24 << 20)
    study = pinned(server, files=[*NATIVE, "more.bin"])
    server.cuts = 1
    base(study, "tiny-llama3")
    assert server.asked_for("more.bin") == ["", f"bytes={10 << 20}-"]  # the client writes 10 MB at a time
    assert (checkpoint(study, "tiny-llama3") / "more.bin").stat().st_size == 24 << 20


@pytest.mark.usefixtures("accepted")
def test_an_interrupted_download_goes_on_in_the_next_run(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    study = pinned(server)
    whole, server.denied = server.files["model.safetensors"], True
    assert "model.safetensors" in refusal(study).where
    download = study.folder / "base" / ".tiny-llama3.download"
    (part,) = download.glob(".model.safetensors.*.part")
    part.write_bytes(whole + b"more")
    refusal(study)
    assert server.asked_for("model.safetensors")[-1] == ""
    part.write_bytes(whole[:1000])
    before, server.denied = len(server.asked), False
    base(study, "tiny-llama3")
    assert server.asked_for("model.safetensors")[-1] == "bytes=1000-"
    assert "config.json" not in dict(server.asked[before:])
    assert not download.exists()
    shown = capsys.readouterr().err
    assert "6 files" in shown
    assert "model.safetensors: 100%" in shown


@pytest.mark.usefixtures("accepted")
def test_a_second_download_waits_for_the_first(server: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    study = pinned(server)
    folder = study.folder / "base"
    folder.mkdir(parents=True)
    second = threading.Thread(target=base, args=(study, "tiny-llama3"))
    with hub.alone(folder):
        second.start()
        second.join(1)
        assert second.is_alive()
        assert server.asked == []
    second.join(30)
    assert (folder / "tiny-llama3/metrics.json").exists()
    assert "waiting for it to end" in capfd.readouterr().err


@pytest.mark.usefixtures("accepted")
@pytest.mark.parametrize("change", [lambda whole: whole[:-1] + b"!", lambda whole: whole[:-10], lambda whole: whole + b"more"])
def test_a_wrong_file_is_fetched_again_once_and_then_refused_by_name(server: Hub, change: Any) -> None:
    study = pinned(server)
    server.instead["model.safetensors"] = 2 * [change(server.files["model.safetensors"])]
    problem = refusal(study)
    assert problem.where.endswith("someone/tiny: model.safetensors")
    assert "twice" in problem.found
    assert server.asked_for("model.safetensors") == ["", ""]
    base(study, "tiny-llama3")  # the hub is whole again, and so is what comes


@pytest.mark.usefixtures("accepted")
def test_a_file_that_is_wrong_once_does_no_harm(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    study = pinned(server)
    server.instead["model.safetensors"] = [b"no such weights"]
    base(study, "tiny-llama3")
    assert "fetching it again" in capsys.readouterr().err


@pytest.mark.usefixtures("accepted")
def test_a_hub_that_vouches_for_other_weights_is_not_believed(server: Hub) -> None:
    study = pinned(server)
    server.files["model.safetensors"] = b"poison"
    problem = refusal(study)
    assert "as pins.yaml says" in problem.expected
    assert server.asked == []


@pytest.mark.usefixtures("accepted")
def test_another_commit_is_refused(server: Hub) -> None:
    study = pinned(server)
    server.commit = "f" * 40
    assert refusal(study).found == f"commit {'f' * 40}"


@pytest.mark.usefixtures("accepted")
def test_what_the_hub_does_not_have_is_said(server: Hub) -> None:
    assert "nobody/here" in refusal(pinned(server, repository="nobody/here")).expected
    assert refusal(pinned(server, revision="a" * 40)).found in ("no such model", f"no commit {'a' * 40}")
    assert refusal(pinned(server, files=[*NATIVE, "vocab.txt"])).found == "no vocab.txt"


@pytest.mark.usefixtures("accepted")
def test_without_a_network_there_is_one_problem(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    study = pinned(server)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    problem = refusal(study)
    assert problem.where == "http://127.0.0.1:9/someone/tiny"
    assert "refused" in problem.found
    assert "MI_LLM_MODELS" in problem.remedy
    monkeypatch.setenv("HF_ENDPOINT", f"{server.address}/elsewhere/LICENSE?")
    assert refusal(study).found == "no answer of a hub (JSONDecodeError)"
    monkeypatch.setenv("HF_ENDPOINT", "http://[nowhere")
    refusal(study)


def test_nothing_is_fetched_before_the_license_is_accepted(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    study = pinned(server)
    monkeypatch.delenv("MI_LLM_ACCEPT_LICENSES", raising=False)
    monkeypatch.setattr(sys, "stdin", Path(os.devnull).open(encoding="utf-8"))  # noqa: SIM115
    problem = refusal(study)
    assert problem.found == "not accepted yet, and there is no terminal to ask at"
    assert "mi-llm base tiny-llama3 --study mini/params.yaml" in problem.remedy
    assert "MI_LLM_ACCEPT_LICENSES=tiny-llama3" in problem.remedy
    assert server.asked == []


def test_a_person_accepts_the_license_once_for_each_revision(
    server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MI_LLM_ACCEPT_LICENSES", raising=False)
    keyboard, terminal = os.openpty()
    monkeypatch.setattr(sys, "stdin", os.fdopen(terminal, encoding="utf-8"))
    study = pinned(server)
    os.write(keyboard, b"no\n")
    assert refusal(study).found == "not accepted"
    os.write(keyboard, b"yes\n")
    base(study, "tiny-llama3")
    shown = capsys.readouterr().err
    assert "License of Kindness" in shown
    assert "- be kind" in shown
    base(study, "tiny-llama3")
    assert "Kindness" not in capsys.readouterr().err
    os.write(keyboard, b"no\n")
    with pytest.raises(Problem, match="not accepted"):
        base(pinned(server, revision="b" * 40), "tiny-llama3")


@pytest.mark.usefixtures("accepted")
def test_too_small_a_disk_or_memory_is_said_with_numbers(server: Hub) -> None:
    problem = refusal(pinned(server, sizes=10**14))
    assert re.fullmatch(r"\d+\.\d GB are free", problem.found)
    assert problem.expected == "600000.0 GB for tiny-llama3: 600000.0 GB of download, 0.0 GB of copy"
    huge = {"layers": 2, "hidden": 4000, "heads": 4, "key_value_heads": 2, "intermediate": 64, "vocabulary": 10**9}
    problem = refusal(pinned(server, shape=huge, sizes=1))
    assert re.fullmatch(r"\d+\.\d GB", problem.found)
    assert problem.expected.startswith("32002.4 GB for tiny-llama3")
    assert server.asked == []


@pytest.mark.usefixtures("accepted")
def test_a_folder_of_the_readers_own_is_used_first(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, folder = pinned(server), tmp_path / "mine" / "someone--tiny"
    for name in (
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "LICENSE",
    ):
        with hub.online():
            hf_hub_download(REPOSITORY, name, revision=REVISION, endpoint=server.address, local_dir=folder)
    server.asked.clear()
    monkeypatch.setenv("MI_LLM_MODELS", str(tmp_path / "mine"))
    base(study, "tiny-llama3")
    source = study.folder / "base/tiny-llama3/source.json"
    from_folder = source.read_bytes()
    assert server.asked == []
    assert (checkpoint(study, "tiny-llama3") / "model.safetensors").samefile(folder / "model.safetensors")
    monkeypatch.delenv("MI_LLM_MODELS")
    base(study, "tiny-llama3")
    assert source.read_bytes() == from_folder
    assert (folder / "model.safetensors").exists()


@pytest.mark.usefixtures("accepted")
def test_a_copy_is_checked_against_pins_and_notes(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, folder = pinned(server), tmp_path / "mine" / "tiny-llama3"
    folder.mkdir(parents=True)
    for name, content in server.files.items():
        (folder / name).write_bytes(content)
    monkeypatch.setenv("MI_LLM_MODELS", str(tmp_path / "mine"))
    base(study, "tiny-llama3")
    unverified = storage.read_json(study.folder / "base/tiny-llama3/source.json")["unverified"]
    assert unverified == ["LICENSE", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    notes = folder / ".cache/huggingface/download"
    notes.mkdir(parents=True)
    (notes / "config.json.metadata").write_text(f"{'f' * 40}\n{blob(server.files['config.json'])}\n0.0\n", encoding="utf-8")
    with pytest.raises(Problem, match=rf"config\.json: downloaded from commit {'f' * 40}"):
        base(study, "tiny-llama3")
    (notes / "config.json.metadata").write_text(f"{REVISION}\n{'0' * 40}\n0.0\n", encoding="utf-8")
    with pytest.raises(Problem, match=r"config\.json: SHA-256"):
        base(study, "tiny-llama3")
    (notes / "config.json.metadata").unlink()
    weights = folder / "model.safetensors"
    weights.unlink()
    weights.write_bytes(server.files["model.safetensors"][:-1])
    with pytest.raises(Problem, match=r"model\.safetensors: SHA-256"):
        base(study, "tiny-llama3")
    weights.unlink()
    with pytest.raises(Problem, match=r"no model\.safetensors"):
        base(study, "tiny-llama3")
    monkeypatch.setenv("MI_LLM_MODELS", str(tmp_path / "elsewhere"))
    with pytest.raises(Problem, match="no such folder"):
        base(study, "tiny-llama3")


@pytest.mark.usefixtures("accepted")
@pytest.mark.parametrize(
    ("fault", "problem_text"),
    [
        (lambda shard: shard.write_bytes(shard.read_bytes()[:-4]), r"00002\.safetensors: cannot be read .*not fully covered"),
        (lambda shard: shard.write_bytes(b"junk"), r"00002\.safetensors: cannot be read"),
        (
            lambda shard: save_file(
                {name: weight[:1].clone() for name, weight in load_file(shard).items()}, shard, {"format": "pt"}
            ),
            r"weight: \[1",
        ),
        (lambda shard: shard.unlink(), r"no model-00002-of-\d+\.safetensors"),
    ],
)
def test_a_checkpoint_that_lacks_a_weight_is_refused(
    fault: Any, problem_text: str, server: Hub, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, folder = checkpoints / "tiny-llama3", Path("mine/tiny-llama3")
    AutoModelForCausalLM.from_pretrained(whole).save_pretrained(folder, max_shard_size="100KB")
    for name in ("tokenizer.json", "tokenizer_config.json", "LICENSE"):
        (folder / name).write_bytes(server.files[name])
    monkeypatch.setenv("MI_LLM_MODELS", "mine")
    shards = [path.name for path in folder.glob("*.safetensors*")]
    study = pinned(server, files=[*(name for name in NATIVE if name != "model.safetensors"), *shards])
    (shard,) = folder.glob("*-00002-of-*.safetensors")
    base(study, "tiny-llama3")
    fault(shard)
    with pytest.raises(Problem, match=problem_text):
        base(study, "tiny-llama3")


@pytest.mark.usefixtures("accepted")
def test_a_checkpoint_of_another_size_is_refused(server: Hub) -> None:
    assert refusal(pinned(server, parameters=7)).found == "47392 parameters"


@pytest.mark.usefixtures("accepted")
@pytest.mark.parametrize(
    ("written", "problem_text"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, "rope_theta 10000.0"),
        ({"rope_parameters": None, "rope_theta": 10000}, "rope_theta 10000"),
        ({"rope_parameters": None}, "rope_theta 10000.0"),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 500000.0, "factor": 2.0}},
            "rope_type linear",
        ),
        ({"rope_parameters": None, "rope_theta": 500000.0, "partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps 1e-05"),
        ({"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}, "heads 8, key_value_heads 4, head_dim 4"),
    ],
)
def test_a_configuration_that_contradicts_the_original_is_refused_before_weights_are_fetched(
    written: dict[str, Any], problem_text: str, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**json.loads(server.files["config.json"]), **written}
    server.files["config.json"] = json.dumps({key: value for key, value in config.items() if value is not None}).encode()
    study = pinned(server, original={"repository": "its-makers/tiny", "rope_theta": 500000, "rms_norm_eps": 1e-6})
    problem = refusal(study)
    assert problem.found == problem_text
    assert problem.expected.endswith(", as its-makers/tiny has it")
    assert "use the original repository, its-makers/tiny" in problem.remedy
    assert "its commit into models, and the SHA-256 of its weight files into pins.yaml" in problem.remedy
    assert {name for name, _ in server.asked} == {"config.json"}
    folder = tmp_path / "mine" / "tiny-llama3"
    folder.mkdir(parents=True)
    for name, content in server.files.items():
        (folder / name).write_bytes(content)
    monkeypatch.setenv("MI_LLM_MODELS", str(tmp_path / "mine"))
    assert refusal(study).found == problem_text


@pytest.mark.usefixtures("accepted")
def test_a_published_layout_is_converted(
    checkpoints: Path, sample_dialogs: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = tmp_path / "published"
    baichuan2(published, sentencepiece_model([turn.text for dialog in sample_dialogs for turn in dialog.turns]), shards=1)
    wanted = [
        "config.json",
        "generation_config.json",
        "pytorch_model.bin",
        "tokenizer.model",
        "tokenizer_config.json",
        "LICENSE",
    ]
    with serve(files_of(published), monkeypatch) as server:
        entry: dict[str, Any] = {
            "files": wanted,
            "converted": True,
            "parameters": 242848,
            "shape": {"layers": 2, "hidden": 32, "heads": 4, "key_value_heads": 4, "intermediate": 48, "vocabulary": 3520},
        }
        original = {"repository": REPOSITORY, "rope_theta": 10000, "rms_norm_eps": 1e-6}
        study = pinned(server, "tiny-baichuan2", **entry, original=original | {"rope_theta": 5000000})
        problem = refusal(study, "tiny-baichuan2")
        assert (problem.found, problem.expected) == ("rope_theta 10000.0", f"rope_theta 5000000.0, as {REPOSITORY} has it")
        study = pinned(server, "tiny-baichuan2", **entry, original=original)
        base(study, "tiny-baichuan2")
        server.shutdown()
    assert storage.read_json(checkpoint(study, "tiny-baichuan2") / "conversion.json")["to"] == "llama"
    assert not (study.folder / "base/.tiny-baichuan2.download").exists()
    assert (study.folder / "base/tiny-baichuan2/LICENCE/LICENSE").exists()
    assert load(checkpoint(study, "tiny-baichuan2"), "float32")[0].config.model_type == "llama"


def test_the_command_line_is_offline_and_fetches_all_the_same(server: Hub) -> None:
    pinned(server)
    command = [str(PROGRAMS / "mi-llm"), "base", "tiny-llama3", "--study", "mini/params.yaml"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "MI_LLM_ACCEPT_LICENSES": "tiny-llama3"},
    )
    assert done.returncode == 0, done.stderr
    assert "base@tiny-llama3: done" in done.stderr


def test_outside_the_download_the_client_stays_offline(server: Hub) -> None:
    program = f"""
import os
os.environ["HF_HUB_OFFLINE"] = "1"
from huggingface_hub import HfApi
from mi_llm.models import hub
ask = lambda: HfApi(endpoint="{server.address}").model_info("{REPOSITORY}", revision="{REVISION}").sha
with hub.online():
    print(ask())
try:
    ask()
except Exception as error:
    print(type(error).__name__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [REVISION, "OfflineModeIsEnabled"]


@pytest.mark.usefixtures("accepted")
def test_wrong_pins_are_refused_in_words(server: Hub) -> None:
    study = pinned(server, parameters="many")
    with pytest.raises(Problem, match=rf"mini/pins\.yaml: {REPOSITORY}@{REVISION}: parameters: .*integer"):
        base(study, "tiny-llama3")
    Path("mini/pins.yaml").write_text("- nothing", encoding="utf-8")
    with pytest.raises(Problem, match=r"pins\.yaml: no mapping"):
        base(load_study(Path("mini/params.yaml")), "tiny-llama3")
    Path("mini/pins.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(Problem, match=r"pins\.yaml: not YAML"):
        base(load_study(Path("mini/params.yaml")), "tiny-llama3")
    Path("mini/pins.yaml").unlink()
    with pytest.raises(Problem, match=f"run mi-llm pin {REPOSITORY} --revision {REVISION} --name tiny-llama3 --study mini"):
        base(load_study(Path("mini/params.yaml")), "tiny-llama3")


@pytest.mark.usefixtures("accepted")
def test_small_files_are_held_to_their_pins_too(server: Hub) -> None:
    study = pinned(server)
    pins = storage.read_yaml(Path("mini/pins.yaml"))
    pins[f"{REPOSITORY}@{REVISION}"]["files"]["config.json"] = {"git": "0" * 40}
    YAML().dump(pins, Path("mini/pins.yaml"))
    problem = refusal(study)
    assert problem.where.endswith("config.json")
    assert problem.expected == f"{'0' * 40}, as pins.yaml says"


def test_a_license_that_is_not_in_the_file_is_refused(server: Hub) -> None:
    study = pinned(server)
    YAML().dump({"mildness": {"name": "License of Mildness"}}, Path("licenses.yaml"))
    problem = refusal(study)
    assert (problem.where, problem.found) == ("mini/params.yaml: models.tiny-llama3.license", "kindness")
    assert problem.expected == "one of mildness, unknown"
    YAML().dump({"kindness": {"address": 7}}, Path("licenses.yaml"))
    assert refusal(study).where == "licenses.yaml"


def test_the_papers_models_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study = load_study(Path("params.yaml"))
    entries = [hub.entry_of(study, model) for model in study.models]
    assert [entry.revision for entry in entries] == [
        "ea66ced17780ca3db39bc9f8aa601d8463db3da5",
        "8599336fc6c125203efb2360bfaf4c80eef1d1bf",
        "b293440ad1601915565e7accbffd89081c076bd2",
    ]
    origins = [entry.original for entry in entries]
    assert [
        origin and (origin.rope_theta, origin.partial_rotary_factor, entry.shape.head_dim)
        for origin, entry in zip(origins, entries, strict=True)
    ] == [(10_000, 1, 128), (5_000_000, 0.5, 128), (500_000, 1, 128)]
    for entry in entries:
        assert entry.shape.parameters == entry.parameters
        assert entry.license.duties
        weights = [pin for name, pin in entry.files.items() if name.startswith(("model-", "pytorch_model"))]
        assert weights
        assert all(pin.sha256 for pin in weights)
    assert entries[1].license.address == (
        "https://huggingface.co/zai-org/glm-4-9b-chat-hf/blob/8599336fc6c125203efb2360bfaf4c80eef1d1bf/LICENSE"
    )
