"""The paper's own study in its own shape: the root's parameters with other sizes, models and paths, run from end to end.

Its inputs are made up (`made_up_release.py`), so that it never skips. The first run has nothing recorded and nothing coded, the
second has talks with recorded clients and two raters' codes.
"""

import io
import json
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import made_up_release
import pandas as pd
import pytest
from repository import GIT, PROGRAMS, ROOT
from ruamel.yaml import YAML
from tiny import untrained
from transformers import PreTrainedTokenizerFast

from mi_llm import storage
from mi_llm.codebook.coding import Global
from mi_llm.dialog import read_dialogs

pytestmark = pytest.mark.slow
MI_LLM = str(PROGRAMS / "mi-llm")
MODEL = "tiny-glm4"
JUDGE = "llm:gpt-4"  # the root's language model as a rater
CHANGED: dict[str, Any] = {  # sizes, models and paths; everything else is the root's
    "threads": 2,
    "llm.base_url": "",  # the server that plays the clients
    "models": {MODEL: {"path": f"untrained/{MODEL}", "chat_format": "glm4"}},
    "expect.disk_gb": 1,
    "rate.dialogs": 3,
    "translate.transcripts": 2,
    "respond.max_new_tokens": 12,
    "simulate.dialogs": 2,
    "simulate.rounds": 3,
    "safety.models": [MODEL],
    "safety.rounds": 2,
}


def values(content: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a parameters file by their dotted keys."""
    for key, value in content.items():
        name = f"{above}{key}"
        if isinstance(value, dict) and name not in CHANGED:
            yield from values(value, f"{name}.")
        else:
            yield name, value


def paper_shaped(text: str, changes: dict[str, Any]) -> str:
    """The root's parameters with some values changed, and no other difference."""
    yaml = YAML()
    content = yaml.load(text)
    before = dict(values(YAML(typ="safe").load(text)))
    for name, value in changes.items():
        *sections, key = name.split(".")
        section = content
        for part in sections:
            section = section[part]
        section[key] = value
    stream = io.StringIO()
    yaml.dump(content, stream)
    after = dict(values(YAML(typ="safe").load(stream.getvalue())))
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == changes.keys()
    return stream.getvalue()


class Clients(BaseHTTPRequestHandler):
    """A chat server that plays clients, who say where the talk stands; asked for a form, it fills it."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        rounds = len(request["messages"]) // 2
        text = f"我想多动一动，可是第{rounds}次还是没有时间。" + ("[告别]" if rounds == 2 and request["temperature"] else "")
        if "response_format" in request:
            text = self.filled(request["response_format"]["json_schema"], request["messages"][0]["content"])
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
        head = {"id": "x", "object": "chat.completion", "created": 0, "model": f"{request['model']}-test"}
        content = json.dumps(head | {"choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def filled(self, form: dict[str, Any], prompt: str) -> str:
        """A form filled: readiness 4, suboptimal on every dimension, change talk in every client volley."""
        if form["name"] == "ruler":
            return '{"readiness": 4}'
        if form["name"] == "grades":
            return json.dumps(dict.fromkeys(form["schema"]["required"], "suboptimal"))
        volleys = [line.split(" ", 2) for line in prompt.partition("<transcript>\n")[2].splitlines()[:-1]]
        return json.dumps(
            {"codes": [{"volley": int(number), "code": "change"} for number, role, _ in volleys if role == "client"]}
        )

    def log_message(self, *words: object) -> None:
        """Say nothing."""


class Bundle:
    """A clone with the paper-shaped study at its root, and the mirror folder that it takes its corpora from."""

    def __init__(self, folder: Path, mirror: Path) -> None:
        self.folder = folder
        self.locks: list[bytes] = []  # after each whole run
        programs = f"{Path(MI_LLM).parent}{os.pathsep}{os.environ['PATH']}"
        own = {"PYTHONPATH": str(folder / "src"), "MI_LLM_MIRROR": str(mirror), "PATH": programs}
        self.environment = {**os.environ, **own}

    @property
    def lock(self) -> bytes:
        """The study's lock as it is now."""
        return (self.folder / "dvc.lock").read_bytes()

    def run(self, *words: str, status: int = 0) -> str:
        """Run `mi-llm` in the clone, with the clone's own code; returns all it printed."""
        command = [MI_LLM, *words]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    def reproduce(self) -> None:
        """Run the whole study."""
        self.run("reproduce", "paper", "--yes")
        self.locks.append(self.lock)

    def reproduce_killed(self, chance: random.Random, longest: float, most: int) -> int:
        """Run the whole study, killed up to `most` times, at random moments at most `longest` seconds apart; counts the kills."""
        kills = 0
        while kills < most:
            process = subprocess.Popen(
                [MI_LLM, "reproduce", "paper", "--yes"], cwd=self.folder, env=self.environment, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                process.wait(2 + chance.random() * longest)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
                continue
            assert process.returncode == 0
            return kills
        self.run("reproduce", "paper", "--yes")
        return kills

    def dvc(self, *words: str) -> None:
        """Run DVC in the clone."""
        subprocess.run([str(Path(MI_LLM).parent / "dvc"), *words], cwd=self.folder, env=self.environment, check=True)

    def table(self, name: str) -> pd.DataFrame:
        """A table of the report."""
        return pd.read_csv(self.folder / "runs/paper/report/tables" / f"{name}.csv", index_col=0)


@pytest.fixture(scope="module")
def clients() -> Iterator[str]:
    """The address of a running server of clients."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Clients) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


@cache
def released() -> dict[str, bytes]:
    """The made-up release, the same bytes for all bundles: Word and Excel files hold the time when they were made."""
    return made_up_release.files(ROOT / "data")


def make_bundle(folder: Path, clients: str, tokenizer: PreTrainedTokenizerFast, **more: Any) -> Bundle:
    """Make a clone with the paper-shaped study, not yet run, and its mirror folder beside it; `more` changes: `section__key`."""
    changes = CHANGED | {"llm.base_url": clients} | {name.replace("__", "."): value for name, value in more.items()}
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    shutil.copytree(ROOT / "src", folder / "src", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "params.yaml").write_text(paper_shaped(storage.read_text(ROOT / "params.yaml"), changes), encoding="utf-8")
    (folder / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
    (folder / "reference.json").unlink()  # of the audit of the real release
    mirror = folder.parent / "mirror"
    made_up_release.make_mirror(mirror, ROOT / "data", folder / "src/mi_llm/corpora/sources.yaml", released())
    untrained(folder / "untrained", tokenizer)
    subprocess.run([*GIT, "commit", "-q", "-a", "-m", "paper-shaped"], cwd=folder, check=True)
    return Bundle(folder, mirror)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, clients: str, tokenizer: PreTrainedTokenizerFast) -> Bundle:
    """The paper-shaped study of this module's tests."""
    return make_bundle(tmp_path_factory.mktemp("paper") / "bundle", clients, tokenizer)


RECORDINGS = {"Ratings of the corpora", "AnnoMI in Chinese"}
PEOPLE = {"Dialogs with standardized clients", "Codes given by people"}


def test_with_nothing_recorded_and_nothing_coded_the_report_says_what_is_absent(bundle: Bundle) -> None:
    bundle.reproduce()
    assert set(bundle.table("not-had").index) >= RECORDINGS | PEOPLE
    scores = bundle.table("scores")
    assert set(scores["Test set"]) == {"as published", "repaired"}
    assert "Table 6" in storage.read_text(bundle.folder / "runs/paper/report/index.html")
    danger = storage.read_text(bundle.folder / "runs/paper/report/safety.html")
    assert "mi-llm safety MODEL --study params.yaml --mode record" in danger
    assert bundle.table("safety").empty
    assert set(bundle.table("safety-validation").loc[JUDGE, "κ with a person"]) == {"not recorded"}
    assert bundle.table("safety-validation").loc["checklist", "κ with a person"].str.contains(r"n = (?:64|94)").all()
    assert "10c" in bundle.table("checklist").query("Answered == 'no'").index.astype(str)


def code_packets(folder: Path, out: Path) -> None:
    """Two raters code every packet: the first sees a simple reflection in each volley, the second nothing in the first one."""
    codes, ratings = ["rater,packet,volley,code"], ["rater,packet,code,rating"]
    for rater in ("rater-1", "rater-2"):
        for packet in storage.read_json(folder / "raters.json")[rater]:
            turns = storage.read_json(folder / f"{packet}.json")["turns"]
            numbers = [number for number, turn in enumerate(turns, 1) if turn["role"] == "counselor"]
            for number in numbers:
                code = "" if rater == "rater-2" and number == numbers[0] else "SR"
                codes.append(f"{rater},{packet},{number},{code}")
            ratings += [f"{rater},{packet},{code},3" for code in Global]
    storage.write_text(out / "codes.csv", "\n".join(codes) + "\n")
    storage.write_text(out / "globals.csv", "\n".join(ratings) + "\n")


def test_with_recorded_clients_and_two_raters_the_manual_evaluation_is_filled(bundle: Bundle) -> None:
    if not bundle.locks:
        bundle.reproduce()
    simulating = ("simulate", MODEL, "--study", "params.yaml", "--mode", "record")
    assert "at most 20: 4 talks of 3 rounds" in bundle.run(*simulating, "--dry-run")
    refused = bundle.run(*simulating, status=2)  # no terminal to ask on
    assert "at most 20" in refused
    assert "add --yes" in refused
    bundle.run(*simulating, "--yes")
    danger = ("safety", MODEL, "--study", "params.yaml", "--mode", "record", "--yes")
    assert "80 talks of 2 rounds, and 64 graded replies" in bundle.run(*danger)  # 20 clients, 2 arms, without and with guard
    bundle.dvc("repro", "--quiet", "dvc.yaml:blind")
    bundle.run("code", "--study", "params.yaml", "--mode", "record", "--yes")
    bundle.run("miti", "--study", "params.yaml", "--mode", "record", "--yes")
    code_packets(bundle.folder / "runs/paper/blind/packets", bundle.folder / "people/codes")
    bundle.reproduce()
    talks = read_dialogs(bundle.folder / "runs/paper/simulate" / MODEL / "tuned.jsonl")
    assert [talk.meta["client"] for talk in talks] == ["llm", "llm"]
    assert [talk.meta["ended"] for talk in talks] == ["farewell", "farewell"]
    assert [talk.meta["readiness"] for talk in talks] == [[4, 4], [4, 4]]
    assert not any("[告别]" in turn.text for talk in talks for turn in talk.turns)
    absent = set(bundle.table("not-had").index)
    assert absent >= RECORDINGS
    assert not PEOPLE & absent
    indicators = bundle.table("indicators")
    assert indicators.loc["Simple reflections", f"{MODEL} tuned"] == "1.50 (0.00)"  # two volleys, the first by one rater only
    assert set(bundle.table("reliability")["Raters"]) == {"rater-1, rater-2"}
    shown_danger(bundle)
    shown_client_language(bundle)


def shown_danger(bundle: Bundle) -> None:
    """Check the report's page on clients in danger: each arm, without and with the guard, by checklist and judge."""
    outcomes = bundle.table("safety").reset_index()
    assert set(outcomes["Graded by"]) == {"checklist", JUDGE}
    assert set(outcomes["Arm"]) == {f"{MODEL} base", f"{MODEL} tuned"}
    assert set(outcomes["Guard"]) == {"without guard", "with guard"}
    assert set(outcomes["Talks"]) == {10}
    judged = outcomes[outcomes["Graded by"] == JUDGE]
    assert set(judged["Suboptimal"]) == {"1.00 [0.69, 1.00]"}
    assert judged["κ with a person"].str.contains(r"n = (?:64|94)").all()
    page = storage.read_text(bundle.folder / "runs/paper/report/safety.html")
    assert page.count('<article class="example"') == 2
    assert f"<strong>{MODEL} tuned, with the guard in front.</strong>" in page
    assert bundle.table("checklist").rename(index=str).loc["10c", "Place"] == "safety.html#main"


def shown_client_language(bundle: Bundle) -> None:
    """Check that both coders' codes of clients stand in the report with their worth, beside readiness at both ends."""
    language = bundle.table("client-language").reset_index()
    assert {"lexical", JUDGE, "experts", "rater-1"} <= set(language["Coder"])
    shares = language[(language["Coder"] == JUDGE) & (language["Measure"] == "share of change talk")].set_index("Arm")
    assert shares.loc[f"{MODEL} tuned", "Mean [interval], or all values"] == "1.00; 1.00"
    assert "n = " in shares.loc[f"{MODEL} tuned", "κ with AnnoMI's experts, client talk"]
    ceiling = bundle.table("client-language-worth")["experts among themselves: English"]
    assert list(ceiling.index) == ["client talk", "change talk", "sustain talk", "neutral talk"]
    assert bundle.table("readiness").loc[f"{MODEL} base", ["Before", "After"]].tolist() == ["4.00; 4.00", "4.00; 4.00"]


def test_runs_killed_at_any_moment_end_in_the_same_locks(
    bundle: Bundle, tmp_path: Path, clients: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    if len(bundle.locks) < 2:
        test_with_recorded_clients_and_two_raters_the_manual_evaluation_is_filled(bundle)
    other, chance = make_bundle(tmp_path / "bundle", clients, tokenizer), random.Random(7)
    assert other.reproduce_killed(chance, longest=60, most=4) >= 2
    assert other.lock == bundle.locks[0]
    for name in (f"simulate/{MODEL}", f"safety/{MODEL}", "code", "miti"):
        for kept in (bundle.folder / "runs/paper" / name).glob("cassette.*"):  # the answers, and what was asked for them
            shutil.copy(kept, other.folder / kept.relative_to(bundle.folder))
    shutil.copytree(bundle.folder / "people/codes", other.folder / "people/codes", dirs_exist_ok=True)
    assert other.reproduce_killed(chance, longest=40, most=2) >= 1
    assert other.lock == bundle.locks[1]


def test_without_the_training_file_the_released_dialogs_train_one_model_and_another_stays_untuned(
    tmp_path: Path, clients: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    other = "tiny-llama3"
    models = CHANGED["models"] | {other: {"path": f"untrained/{other}", "chat_format": "llama3"}}
    bundle = make_bundle(
        tmp_path / "bundle", clients, tokenizer, models=models,
        split__test="divided", split__test_dialogs=1, finetune__records="round", finetune__untuned=[other],
    )  # fmt: skip
    (tmp_path / "mirror/trian_2000.json").unlink()
    bundle.reproduce()
    scores = bundle.table("scores")
    assert scores.loc[MODEL, "Tuned"].notna().all()
    assert scores.loc[other, "Base"].notna().all()
    assert scores.loc[other, "Tuned"].isna().all()
    assert any("trian_2000.json" in what for what in bundle.table("not-had").index)
    page = storage.read_text(bundle.folder / "runs/paper/report/index.html")
    assert "The paper did not make this experiment" in page
